"""What every training loop shares: schedules, EMA, checkpoints, progress, tracking."""
