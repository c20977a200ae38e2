"""Loops over time compiled for the processor at hand: the System recurrence and its gradient, in C."""
