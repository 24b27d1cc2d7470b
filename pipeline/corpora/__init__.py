"""Corpora: finds files, recognizes their formats and yields documents."""
