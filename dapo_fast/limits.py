"""Bounds that settings and arguments share."""

# Of sets of problems and of rewards: sums and quotients of any stay numbers.
LEAST_WEIGHT, MOST_WEIGHT = 1e-6, 1e6
