"""Where the captions of an image come from."""
