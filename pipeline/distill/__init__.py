"""Losses, the objective, and the training of a student from a cache."""
