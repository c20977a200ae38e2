"""What each way to compute a system takes: counted from its structure, predicted, and measured."""
