"""The control engineer's view of linear systems."""
