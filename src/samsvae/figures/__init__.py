"""One pure function per figure: tidy tables in, a matplotlib Figure out. `style` holds the one palette."""
