"""Signal propagation over a Graph, on numpy alone."""
