"""What lies on disk: records, the codec of the top-k logits, shards, manifests."""
