"""Models in a single file: which parts it holds, and its tensors."""
