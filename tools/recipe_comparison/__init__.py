"""Comparison of recipes in equal time."""
