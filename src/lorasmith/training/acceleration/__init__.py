"""How a training step is made fast: module patches, compilation, memory."""
