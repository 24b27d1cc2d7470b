"""Corpora: from files to documents."""
