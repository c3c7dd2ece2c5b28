"""Putting adapters into models: fitting files, injecting, training, exporting."""
