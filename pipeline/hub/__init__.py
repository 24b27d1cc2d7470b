"""Models of the Hugging Face hub: downloaded into its cache, only the files that are needed."""
