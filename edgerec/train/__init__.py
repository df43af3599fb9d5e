"""Train a model, evaluate it, and read the resulting run."""
