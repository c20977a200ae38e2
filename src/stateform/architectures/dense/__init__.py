"""Dense transitions from the input."""
