"""Captions of a training dataset: variants, encoding, gates, lengths."""
