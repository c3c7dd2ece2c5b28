"""Text: tokenizers, prompts of any length, text encoders."""
