"""What training loops share: optimizers, schedules, EMA, checkpoints, progress, tracking."""
