"""Growth of the gradient along the time axis of recurrences."""
