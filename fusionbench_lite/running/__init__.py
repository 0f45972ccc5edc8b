"""A run: load, merge, adapt, evaluate, record; and experiments, which are many runs."""
