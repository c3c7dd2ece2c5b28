"""Scanning datasets for problems before training."""
