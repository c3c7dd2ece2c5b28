"""Low-rank adapters: the layers, where they go, putting them in and out, and their files."""
