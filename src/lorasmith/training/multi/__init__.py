"""Runs of several LoRAs: features with a tag each, and sweeps."""
