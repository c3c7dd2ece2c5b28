"""Evaluation of trigger words, base models and datasets."""
