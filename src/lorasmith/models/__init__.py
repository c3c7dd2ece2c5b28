"""Stable Diffusion models: families, loading and converting, text encoding, noise schedules."""
