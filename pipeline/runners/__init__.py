"""Runners: run the jobs of a command, on this machine or on a Ray cluster."""
