"""What is read off a prediction: steps of the spine, trends, stacks, phases, attribution."""
