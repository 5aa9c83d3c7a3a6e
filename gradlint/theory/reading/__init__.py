"""Results read from a prediction: steps of the spine, sustained growth, stacks of layers, phases, attribution."""
