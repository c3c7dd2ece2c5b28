"""Read TOML settings: keys of earlier versions, names from other trainers, errors in one line."""
