"""Model weights as they lie on disk."""
