"""The teacher's forward pass and what is kept of it."""
