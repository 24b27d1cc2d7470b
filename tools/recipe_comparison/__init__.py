"""Comparison of recipes with equal training time."""
