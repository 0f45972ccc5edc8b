"""What a command line gives: the keys that its overrides set, whatever the values.

A value that equals the default is given too, and so is null. What a YAML file of a group writes out is a default.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override

STEPS = ("method", "adaptation", "steps")
"""What the key `steps` is short for."""

Key = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Section:
    """The values of a section of a configuration; those named in `given` were given, the others are defaults."""

    values: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    given: frozenset[str] = frozenset()


@dataclasses.dataclass(frozen=True)
class Given:
    """The keys that overrides set, those set last at the end; None for a configuration without a list of overrides."""

    keys: tuple[Key, ...] | None

    def has(self, *key: str) -> bool:
        """Say whether an override sets this key itself."""
        return self.keys is not None and key in self.keys

    def section(self, at: Key, values: Mapping[str, Any], defaults: Mapping[str, Any] | None = None) -> Section:
        """Return the section of the configuration that lies at a key, with `values`.

        Without a list of overrides, given is what is neither null nor the default.
        """
        if self.keys is None:
            usual = defaults or {}
            present = {name: value for name, value in values.items() if value is not None}
            names = {name for name, value in present.items() if name not in usual or value != usual[name]}
        else:
            names = {key[len(at)] for key in self.keys if key[: len(at)] == at and len(key) > len(at)}
        return Section(values, frozenset(names & set(values)))

    def adaptation(self, values: Mapping[str, Any], steps: int | None) -> Section:
        """Return the section of an adaptation, `values`, with the value of the key `steps`, where it is not null.

        Of `steps` and method.adaptation.steps the later override counts; `steps` without a list of overrides.
        """
        section = self.section(STEPS[:-1], values)
        if steps is None or (self._place(STEPS) > self._place(STEPS[-1:]) and "steps" in section.given):
            return section
        return Section({**section.values, "steps": steps}, section.given | {"steps"})

    def _place(self, key: Key) -> int:
        return self.keys.index(key) if self.keys is not None and key in self.keys else -1


def read(overrides: Sequence[str] | None) -> Given:
    """Return what overrides give, in Hydra's grammar: key=, +key=, ++key= and ~key, values that are mappings included."""
    if overrides is None:
        return Given(None)
    keys: dict[Key, None] = {}
    for override in parsed(overrides):
        key = tuple(override.key_or_group.split("."))
        value = None if override.is_delete() else override.value()
        if len(key) > 1 and not isinstance(value, Mapping):  # in place of what was below; the name of a group leaves it there
            keys = {other: None for other in keys if other[: len(key)] != key}
        for leaf in () if override.is_delete() else _leaves(key, value):
            keys.pop(leaf, None)
            keys[leaf] = None
    return Given(tuple(keys))


def keys(overrides: Sequence[str]) -> list[str]:
    """Return the key of every override, such as "seed" of ++seed=3."""
    return [override.key_or_group for override in parsed(overrides)]


def parsed(overrides: Sequence[str]) -> list[Override]:
    """Return overrides as Hydra's grammar reads them; they are shared, so nobody changes them. Raises what Hydra raises."""
    return [_parsed(override) for override in overrides]


@functools.lru_cache(maxsize=4096)
def _parsed(override: str) -> Override:
    return OverridesParser.create().parse_overrides([override])[0]


def _leaves(key: Key, value: Any) -> list[Key]:
    """Return the keys that a value sets: one, or those of a mapping, which is merged into what is there."""
    if not isinstance(value, Mapping) or not value:
        return [key]
    return [leaf for name, inner in value.items() for leaf in _leaves((*key, str(name)), inner)]
