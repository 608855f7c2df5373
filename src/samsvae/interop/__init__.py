"""Weights of the authors' release, in and out."""
