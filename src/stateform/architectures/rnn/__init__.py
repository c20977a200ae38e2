"""Recurrent networks whose gates see the input alone."""
