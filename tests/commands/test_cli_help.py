"""--help and --cfg job answer at once: an empty Hydra application is the yardstick, in the same run."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

import pytest

EMPTY = """
import hydra

@hydra.main(version_base="1.3", config_path=None)
def main(cfg):
    pass

main()
"""


def _seconds(arguments: list[str], cwd) -> float:
    start = time.perf_counter()
    subprocess.run(arguments, cwd=cwd, capture_output=True, check=True)
    return time.perf_counter() - start


@pytest.mark.parametrize("flags", [["--help"], ["--cfg", "job"]])
def test_answers_within_one_and_a_half_times_an_empty_application(tmp_path, flags):
    script = tmp_path / "empty.py"
    script.write_text(EMPTY)
    ratios = []
    for _ in range(7):
        empty = _seconds([sys.executable, str(script), *flags], tmp_path)
        ours = _seconds([sys.executable, "-m", "fusionbench_lite", *flags], tmp_path)
        ratios.append(ours / empty)
    assert statistics.median(ratios) <= 1.5, ratios


def test_help_lists_options_and_keys(command):
    text = command("--help").stdout
    for word in ("adarank_tsvm", "ties_merging", "vit_mini", "results_dir", "mini/demo", "fusionbench_lite.tables", "seed: 0"):
        assert word in text
    assert "hydra:" not in text
    assert max(len(line) for line in text.splitlines()) <= 125


def test_help_shows_the_configuration_of_its_line(command):
    text = command("method=adarank", "seed=7", "-h").stdout
    assert "id: adarank\n" in text
    assert "seed: 7\n" in text
    assert "temperature: 10.0" in text


@pytest.mark.parametrize(("line", "said"), [("method=adarnk", "did you mean 'adarank'"), ("sed=7", "unknown key 'sed'")])
def test_help_refuses_a_line_that_does_not_compose(command, line, said):
    refused = command(line, "--help")
    assert refused.returncode == 2
    assert said in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    assert not refused.stdout


def test_help_with_other_flags_is_left_to_hydra(command):
    assert "checkpoints: auto" in command("--help", "--resolve").stdout


def test_package_alone_imports_no_torch():
    code = "import sys, fusionbench_lite as f; f.methods(); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"
