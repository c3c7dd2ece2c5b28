"""Operations on LoRA files: merge, resize, extract, diff, fuse, project."""
