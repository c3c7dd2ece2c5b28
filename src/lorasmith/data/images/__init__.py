"""Images: decoding, masks, augmentation, aspect-ratio buckets."""
