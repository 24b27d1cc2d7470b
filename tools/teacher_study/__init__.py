"""The study of a teacher: its students on tasks, beside students of the labels alone."""
