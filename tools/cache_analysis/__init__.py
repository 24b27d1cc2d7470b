"""Analysis, planning and merging of teacher caches."""
