"""``lorasmith model``: commands on models."""
