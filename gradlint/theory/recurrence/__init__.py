"""Recurrent cells in numpy, and the loops over time in a graph."""
