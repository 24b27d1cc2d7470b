"""Declarations of corpora, tasks, recipes and records. They import no module of the pipeline."""
