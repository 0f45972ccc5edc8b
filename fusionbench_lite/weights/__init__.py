"""State dicts: validation, task vectors, decompositions and files."""
