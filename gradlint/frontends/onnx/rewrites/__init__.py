"""Rewrite a model before its graph is built: order, operators of other domains, weights that are inputs."""
