"""Offline, two-stage distillation of BERT-like masked language models."""
