"""Initial weights of a student."""
