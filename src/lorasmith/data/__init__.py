"""From folders and packed files of captioned images to batches."""
