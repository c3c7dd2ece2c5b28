"""Adapter modules: the layers, their initialisation, and putting them into a network."""
