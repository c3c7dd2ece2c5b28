"""From captioned images to training batches."""
