"""Reports on runs and caches, and pages of a cache's examples: HTML without scripts."""
