"""Errors, devices, files, registries: what every other package builds on."""
