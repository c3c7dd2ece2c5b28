"""Text from outside: tags in it, JSON and paths in it, and how it is shown on a terminal."""
