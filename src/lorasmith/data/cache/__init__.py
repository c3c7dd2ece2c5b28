"""The disk cache of latents and text embeddings."""
