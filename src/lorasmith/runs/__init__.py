"""What a run leaves on disk: paths, summaries, and reading them back."""
