"""Strict, documented settings: one tree per command, read from TOML with overrides."""
