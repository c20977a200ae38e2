"""What a state holds and costs."""
