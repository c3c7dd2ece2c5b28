"""What a run writes: LoRA files, log lines, and how much disk it needs."""
