"""Figures: one module for each, with tables(...), which reads files, and draw(...), which draws what it returns."""
