"""What is particular to each Stable Diffusion family: sizes, keys, defaults."""
