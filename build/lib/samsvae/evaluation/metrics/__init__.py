"""Metrics as plain functions: arrays in, numbers out. `table.py` lists them all."""
