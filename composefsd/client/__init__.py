"""composefsctl: a thin client of the bus."""
