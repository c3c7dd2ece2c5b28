"""Tokenizers, prompts of any length, text encoding."""
