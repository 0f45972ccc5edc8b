"""Records of earlier versions of the schema, made ones of this version as they are read; their files stay as they are.

A version that changes what result.json holds raises `schema.VERSION` by one and adds the function that makes an entry of the last
version one of the new. The key of a record stays (`schema.KEYED_AS`), so that runs still find it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fusionbench_lite.errors import InputError
from fusionbench_lite.tables import schema

Migration = Callable[[Mapping[str, Any]], Mapping[str, Any]]
MIGRATIONS: dict[int, Migration] = {}
"""By version, what makes of a result.json of that version one of the next. There has been one version so far."""


class OtherVersion(InputError):
    """A record of a version that cannot be read here."""


class NewerVersion(OtherVersion):
    """A record of a version that is not known here yet."""


def migrated(data: Any, path: Path) -> Any:
    """Return the content of a result.json in this version of the schema; what has no version is returned as it is.

    Raises OtherVersion, in one line with the record, both versions and the command that makes it again.
    """
    version = data.get("schema_version") if isinstance(data, dict) else None
    if type(version) is not int:
        return data
    if version > schema.VERSION:
        raise NewerVersion(f"{_said(version, path)}: update fusionbench_lite, or make it anew: {_again(data, path)} overwrite=true")
    while version < schema.VERSION:
        if version not in MIGRATIONS:
            raise OtherVersion(f"{_said(data['schema_version'], path)}: make it anew: {_again(data, path)}")
        try:
            data = {**MIGRATIONS[version](data), "schema_version": version + 1}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"it is not a whole one of schema version {version}: {type(error).__name__}: {error}") from None
        version += 1
    return data


def _said(version: int, path: Path) -> str:
    return f"{path} is a record of schema version {version}, this version of fusionbench_lite reads {schema.VERSION}"


def _again(data: Mapping[str, Any], path: Path) -> str:
    """Return the command that makes the run again, as far as its configuration can be read."""
    from fusionbench_lite.planning import recorded  # late: Hydra takes a moment that reading tables does not need

    config = data.get("config")
    line = recorded.command(config, path.parent.parent) if isinstance(config, Mapping) else None
    return line or f"python -m fusionbench_lite method={data.get('method', 'NAME')} results_dir={path.parent.parent}"
