"""From a prompt to images: prompt syntax, samplers, the denoising loop, files with metadata."""
