"""Command lines: flags, help and error reporting."""
