"""``lorasmith lora``: commands on LoRA files."""
