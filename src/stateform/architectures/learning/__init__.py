"""States that learn: test-time training and regression."""
