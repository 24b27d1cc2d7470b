"""Faults that are put into running commands, and what they leave behind."""
