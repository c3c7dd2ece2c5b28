"""Metrics: plain functions on images, features, latents and predictions."""
