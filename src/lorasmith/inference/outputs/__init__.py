"""Written images: files, grids and metadata."""
