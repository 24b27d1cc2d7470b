"""Vocabulary reduction."""
