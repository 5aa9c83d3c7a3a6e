"""Readers: a target becomes a Graph, and where it can be run, something that the probe can run."""
