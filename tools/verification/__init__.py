"""Checks and repair of shard directories."""
