"""``lorasmith demo``."""
