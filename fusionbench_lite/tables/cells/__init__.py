"""Published tables as grids of cells: readings of records beside published numbers."""
