"""Interval analysis: the values that each tensor can take, and the operators that break at one of them."""
