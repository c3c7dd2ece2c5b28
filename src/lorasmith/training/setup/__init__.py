"""From settings to a training state that is ready for its first step."""
