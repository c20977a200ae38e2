"""Experiments: training, sweeps over settings, the store of their results, presets that reproduce findings."""
