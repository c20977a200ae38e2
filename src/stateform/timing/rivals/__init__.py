"""What one would take instead of our layers: the rivals of a benchmark."""
