"""The encoder with its masked-LM head, and its weights in the layouts of the field."""
