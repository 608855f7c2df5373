"""The training loop and its parts. Imports only torch and numpy."""
