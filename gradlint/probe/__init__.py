"""The measurement: what one backward pass per seed says about every node."""
