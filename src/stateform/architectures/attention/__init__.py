"""Attention and its approximations."""
