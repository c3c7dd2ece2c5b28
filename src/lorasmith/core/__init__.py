"""Errors, devices, files and weights: what every other room stands on."""
