"""From a corpus to masked examples: documents, tokens, words, windows, masks."""
