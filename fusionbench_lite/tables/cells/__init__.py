"""Published tables as grids of cells: every number of ours beside its published counterpart."""
