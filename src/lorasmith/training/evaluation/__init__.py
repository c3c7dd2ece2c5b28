"""Evaluate the LoRA of a run folder."""
