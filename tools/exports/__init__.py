"""The formats that `tools/export_student.py` writes, and what they are checked with."""
