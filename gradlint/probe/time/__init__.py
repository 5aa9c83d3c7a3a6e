"""Measure the growth of the gradient along the time axis of recurrences."""
