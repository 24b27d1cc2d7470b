"""Workloads: programs that are benchmarked, or compiled for TPUs."""
