"""The mathematics: distributions, latents, networks and the one probabilistic core. Imports torch and numpy."""
