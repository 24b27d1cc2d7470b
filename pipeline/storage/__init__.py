"""Formats on disk: records, codecs of teacher targets, shards and manifests."""
