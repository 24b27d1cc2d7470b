"""Measurements of the pipeline benchmark."""
