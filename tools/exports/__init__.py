"""Export formats of `tools/export_student.py`, and the checks of exported models."""
