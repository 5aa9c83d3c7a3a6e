"""Probing model files in a child process with limits on time and memory."""
