"""Analysis of corpora before they are prepared."""
