"""Interval analysis: the values that every tensor can take, and the operators that break at one of them."""
