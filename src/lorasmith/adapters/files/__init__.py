"""LoRA files: reading every key format, writing kohya's and diffusers', metadata."""
