"""Prompt syntax: emphasis and LoRA tags."""
