"""The mathematics: distributions, latents, networks and the probabilistic model. Imports only torch and numpy."""
