"""Integrals over Gaussian variables: what activations and other pointwise functions do to moments."""
