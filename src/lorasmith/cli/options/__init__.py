"""Options that several commands share, as annotated types for typer."""
