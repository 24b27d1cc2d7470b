"""Corpora: finds files, recognises their formats and yields documents."""
