"""The training loop and its parts. Imports torch and numpy."""
