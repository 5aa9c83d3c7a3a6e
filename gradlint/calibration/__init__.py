"""From what is known of a model to the probability that it does not train."""
