"""Drawn people: what they look like, how they are drawn and what captions say of them."""
