"""`python -m fusionbench_lite.export RECORD out=DIR [KEY=VALUE ...]`: the model of a record, to take away.

RECORD is a record's directory, its key or the key's beginning. The model is made again from what the record says (merged again,
or with what was learned, without a step), written to DIR, loaded from there, and its predictions are compared with the record's,
example by example: if one differs, nothing is left at DIR and the status is 1.

    results_dir=DIR   where records lie, default: results
    cache_dir=DIR     where experts lie, default: the record's
    select=RULE       whose model: last, best_test, best_unsupervised; default: the record's own
    verify=false      leave the comparison out

DIR holds model.safetensors (a folder per task where the method keeps a model each) and heads.safetensors, and a README.md that
says what it is. `fusionbench_lite.load_exported(DIR)` loads it.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Sequence

from fusionbench_lite.errors import InputError
from fusionbench_lite.fields import flag, location, word
from fusionbench_lite.paths import expanded
from fusionbench_lite.planning.command_line import options_of
from fusionbench_lite.planning.refusals import exit_status

USAGE = f"usage: python -m fusionbench_lite.export RECORD out=DIR [KEY=VALUE ...]\n\n{__doc__}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """The command line; see the module's text."""

    out: str | None = location(None, optional=True)
    results_dir: str = location("results")
    cache_dir: str | None = location(None, optional=True)
    select: str | None = word(None, optional=True)
    verify: bool = flag(True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Return the exit status: 0 done, 1 where predictions differ, 2 bad input."""
    return exit_status(lambda: _main(list(sys.argv[1:] if arguments is None else arguments)))


def _main(given: list[str]) -> int:
    if {"-h", "--help"} & set(given):
        print(USAGE)
        return 0
    name, options = parsed(given)
    assert options.out is not None
    from fusionbench_lite.housekeeping import chosen
    from fusionbench_lite.tables import records

    found = chosen.by_name(expanded(options.results_dir), str(expanded(name)))
    if found.record is None:
        raise InputError(f"{found.path} is no whole record: {found.flaw}")
    out = expanded(options.out)
    from fusionbench_lite.base.progress import Progress
    from fusionbench_lite.exporting import folder, layout, remaking

    folder.check_out(out)
    with Progress() as progress:
        made = remaking.remade(records.read(found.path), options.select, options.cache_dir, progress)
    try:
        form, agreements = folder.export(made, out, verify=options.verify)
    except folder.Differing as error:
        print(error)
        print(f"fusionbench_lite: what was written predicts something else than {found.path.name}: nothing is left", file=sys.stderr)
        return 1
    print("\n".join(map(str, agreements)) if agreements is not None else "not compared with the record: verify=false")
    print(f"written: {out}: {layout.KINDS[form.kind]}")
    return 0


def parsed(given: Sequence[str]) -> tuple[str, Options]:
    """Return the record that a line names and the options. Raises InputError."""
    names = {field.name for field in dataclasses.fields(Options)}
    sets, records = [], []
    for one in given:
        key, equals, _ = one.partition("=")
        is_option = equals and (key in names or (key.isidentifier() and not os.path.lexists(one)))
        (sets if is_option or one.startswith("-") else records).append(one)
    for one in sets:
        if "=" not in one or one.startswith("-"):
            raise InputError(f"{one!r} sets nothing: give KEY=VALUE; --help lists the keys")
    options = options_of(sets, "", Options)
    if len(records) != 1 or not records[0]:
        raise InputError(f"give one RECORD, its directory or key, got {' '.join(map(repr, records)) or 'none'}")
    if options.out is None:
        raise InputError("out is missing: name the folder to write, out=DIR")
    return records[0], options


if __name__ == "__main__":
    sys.exit(main())
