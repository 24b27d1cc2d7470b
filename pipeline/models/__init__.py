"""The encoder with its masked-LM head, and its weights in common file layouts."""
