"""Downloads the needed files of the Hugging Face hub's models into its cache."""
