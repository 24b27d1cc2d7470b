"""Reduction of a teacher's vocabulary to the tokens of a corpus."""
