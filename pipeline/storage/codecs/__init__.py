"""Encodings of teacher targets."""
