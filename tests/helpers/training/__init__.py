"""Datasets, steps and runs of LoRA training and pretraining."""
