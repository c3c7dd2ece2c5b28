"""Training runs on disk: paths, summaries, and reading a run's folder."""
