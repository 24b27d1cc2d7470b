"""The capture stage: the teacher's forward pass, truncation of its output, and its settings."""
