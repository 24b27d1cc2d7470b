"""Pages and pictures of what is in caches and runs."""
