"""Where the cells come from: downloads, filters, simulations, splits and data cards."""
