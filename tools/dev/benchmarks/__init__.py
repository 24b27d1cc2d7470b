"""Rows of the pipeline benchmark."""
