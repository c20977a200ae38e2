"""The contract: what every layer and every model must keep."""
