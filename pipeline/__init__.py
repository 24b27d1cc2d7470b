"""Offline distillation of BERT-like masked language models, in three stages."""
