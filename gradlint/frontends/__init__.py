"""Front ends: they read a target into a `Graph`, and make it a `Runnable` that the probe can run."""
