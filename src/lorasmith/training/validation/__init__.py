"""Validation during a run: losses on held-out images, and preview images."""
