"""The study of a teacher: task scores of distilled students and of baseline students."""
