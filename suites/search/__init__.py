"""Search for learning rates with an equal budget: the same quasi-random points for every method, on held-out rows."""
