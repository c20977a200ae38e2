"""`python -m stateform`."""

from .cli import main

main()
