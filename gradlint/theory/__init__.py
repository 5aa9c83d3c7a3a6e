"""Mean-field theory of signal propagation over a `Graph`, on numpy alone."""
