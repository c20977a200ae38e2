"""Nonlinear recurrent networks."""
