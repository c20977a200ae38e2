"""A question put to layers, and told."""
