"""Declarations of what the data looks like; they import nothing of the pipeline."""
