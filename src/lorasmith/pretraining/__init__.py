"""Pretraining the three parts of Stable Diffusion from scratch, or from existing weights."""
