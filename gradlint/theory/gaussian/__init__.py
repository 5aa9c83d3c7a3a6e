"""Integrals over Gaussian variables: what activations, and functions of arithmetic, do to moments."""
