"""Check model files in a child process that has limits of time and memory."""
