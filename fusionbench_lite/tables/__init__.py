"""Records of finished runs, and the tables made of them. Nothing in this package imports torch.

`records` writes and reads the directory of one run, `rows` says which records make a table, `frame` aggregates them with
pandas, `compare` tests two rows on the same examples, and `render`, `latex`, `terminal` and `plot` show the result.
"""
