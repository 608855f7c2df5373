"""Scores of models and of data."""
