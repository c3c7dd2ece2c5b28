"""From a prompt to pictures: prompt syntax, samplers, the denoising loop, files with metadata."""
