"""The probe: it runs a model and measures signal and gradient at every node, with one backward pass per seed."""
