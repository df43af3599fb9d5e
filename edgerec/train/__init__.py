"""Train and evaluate models, and read the results of training runs."""
