"""What is computed where steps are timed or compiled, and on which devices."""
