"""From folders and packed files of captioned pictures to batches."""
