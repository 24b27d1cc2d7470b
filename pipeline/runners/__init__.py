"""How jobs, one a shard, are run."""
