"""How many examples a law is tried on: hypothesis profiles say it (tests/conftest.py), unless one example is a long computation."""

from __future__ import annotations

from hypothesis import settings

USUAL = 25
"""Examples of a law in the usual run."""


def costly(examples: int) -> settings:
    """Settings of a law whose single example takes long: so many in the usual run, in proportion more in the slow one."""
    return settings(max_examples=max(1, examples * settings.default.max_examples // USUAL))
