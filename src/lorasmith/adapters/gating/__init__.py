"""Trigger gating: when an adapter is active."""
