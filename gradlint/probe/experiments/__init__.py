"""What is measured beyond the passes of the probe: loss, numbers, curvature, rehearsal."""
