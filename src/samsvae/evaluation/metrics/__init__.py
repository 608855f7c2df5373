"""Metrics as plain functions: arrays in, numbers out."""
