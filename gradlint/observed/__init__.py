"""What the experiments of the probe saw: plain data, one module for each concern."""
