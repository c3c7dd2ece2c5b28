"""LoRAs at inference: finding files, attaching, routing by trigger."""
