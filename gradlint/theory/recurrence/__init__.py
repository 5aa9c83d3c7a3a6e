"""Recurrent cells in numpy, and the loops over time that a graph holds."""
