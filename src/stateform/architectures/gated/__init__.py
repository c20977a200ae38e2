"""Linear attention that forgets."""
