"""Where cells come from: downloads, filters, splits, simulations."""
