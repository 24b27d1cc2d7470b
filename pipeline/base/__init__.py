"""Errors, locations, keyed random numbers and other foundations."""
