"""Inputs of a torch module that nobody gave: layouts of its layers, the parts of its arguments, and repair by what fails."""
