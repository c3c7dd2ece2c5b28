"""One training step: from a batch to a loss and an optimizer update."""
