"""Training LoRAs."""
