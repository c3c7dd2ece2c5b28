"""Validation during a run: the validation loss and preview images."""
