"""Fine-tuning: a task's data, heads, training, answers and scores."""
