"""Pretrained models of other packages."""
