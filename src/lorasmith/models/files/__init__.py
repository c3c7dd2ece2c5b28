"""Model files: folders in diffusers' layout, single files, hub cache, conversion."""
