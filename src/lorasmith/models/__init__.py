"""The parts of Stable Diffusion: loading them, their text side, their noise, their anatomy."""
