"""Random streams keyed by what they are for, never by the order in which they are drawn."""

from __future__ import annotations

import hashlib

import numpy as np


def seed_of(*key: object) -> int:
    """Return a 64-bit seed that depends on every part of the key, the same on every machine."""
    digest = hashlib.sha256("\x1f".join(map(str, key)).encode()).digest()
    return int.from_bytes(digest[:8], "little")


def generator(*key: object) -> np.random.Generator:
    """Return a NumPy generator for this key, for example (seed, task, "order", epoch)."""
    return np.random.default_rng(seed_of(*key))
