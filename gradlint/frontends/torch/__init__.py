"""The torch front end: it traces one run of a module to a graph."""
