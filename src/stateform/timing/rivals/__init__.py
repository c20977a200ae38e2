"""The rivals of a benchmark: what one would use instead of our layers."""
