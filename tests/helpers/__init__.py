"""What tests of several folders share: tiny models, LoRA files, datasets, runs, test doubles."""
