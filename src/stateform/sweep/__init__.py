"""Many trainings: plans, stores, engines, results."""
