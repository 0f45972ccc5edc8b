"""Slow float64 re-derivations of every method, written from papers and docs/decisions.md, independent of the package.

Nothing here imports `fusionbench_lite`. Clarity is the only goal: full SVDs, Python loops, one flat vector.
"""
