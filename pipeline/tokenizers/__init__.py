"""Tokenizers, vocabularies and word boundaries."""
