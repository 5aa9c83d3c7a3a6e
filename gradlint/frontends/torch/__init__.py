"""The torch front end: one traced run of a module becomes a graph."""
