"""Measuring models: reconstruction, retrieval, agreement of pictures with words."""
