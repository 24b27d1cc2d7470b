"""Masking: from documents to masked examples."""
