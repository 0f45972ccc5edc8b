"""`python -m fusionbench_lite.tables audit` and `--list`."""

from __future__ import annotations

import csv
import io
import re
import subprocess
import sys

import pytest

from fusionbench_lite.tables.__main__ import main
from tests.conftest import ROOT


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(arguments) == 0
    return capsys.readouterr().out


def test_the_list_has_a_line_for_every_published_table(capsys, tmp_path):
    lines = printed(capsys, "--list", "--results-dir", str(tmp_path)).splitlines()
    assert len(lines) == 50
    assert re.sub(" +", " ", lines[0]) == "doge/table_1 Eight vision tasks, ViT-B/32, main comparison 0/144 cells 13 flags"


def test_text_has_the_printed_and_the_likely_number_and_who_found_it(capsys):
    text = printed(capsys, "audit")
    assert "individual, gpt2, 7 tasks: qqp 0.3964, likely 0.8964 [digits, given]" in text
    assert "individual, vit_b32, 14 tasks: average 90.3, likely 89.6 [averages, found]" in text
    assert "doge/table_14: Data-free methods at 8, 14 and 20 vision tasks" in text
    assert "  fractions: 0 given, 12 found" in text


def test_one_table_alone_before_and_after_options(capsys):
    for arguments in (["audit", "adarank/table_3", "--format", "csv"], ["--format", "csv", "audit", "adarank/table_3"],
                      ["audit", "--format", "csv", "adarank/table_3"]):  # fmt: skip
        rows = list(csv.DictReader(io.StringIO(printed(capsys, *arguments))))
        assert {row["table"] for row in rows} == {"adarank/table_3"}
        assert {"row", "column", "printed", "likely", "reason", "check", "origin", "severity"} <= set(rows[0])


def test_markdown_has_a_section_per_table_and_output_writes_a_file(capsys, tmp_path):
    path = tmp_path / "audit.md"
    assert printed(capsys, "audit", "--format", "markdown", "--output", str(path)).strip() == str(path)
    text = path.read_text()
    assert text.count("\n| --- |") == text.count("## ")
    assert "## adarank/table_18\n" in text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["audit", "doge/table_66"], "unknown published table 'doge/table_66': did you mean 'doge/table_6'?"),
        (["audit", "--format", "latex"], "--format=latex: the audit is written as text, csv, markdown"),
        (["mini/demo", "doge/table_6"], "experiment mini/demo is no published table: leave out doge/table_6"),
        (["--list=x"], "--list: ignored explicit argument 'x'"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], said: str, capsys):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("arguments", [["audit"], ["--list"]], ids=" ".join)
def test_it_answers_in_two_seconds_without_torch(arguments: list[str]):
    """Seconds of the processor: the machine may do other work."""
    code = (
        "import sys, time\nfrom fusionbench_lite.tables.__main__ import main\n"
        f"main({arguments!r})\n"
        "print(time.process_time(), [name for name in ('torch', 'pandas') if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    seconds, slow = done.stderr.strip().split(" ", 1)
    assert slow == "[]"
    assert float(seconds) < 2
