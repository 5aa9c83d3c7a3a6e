"""Experiments: measurements beyond the passes of the probe, such as the loss, its curvature, and rehearsed training."""
