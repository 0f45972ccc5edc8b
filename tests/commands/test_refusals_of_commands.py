"""Every command refuses in one way: one line that begins with its name, status 2; no tracebacks for Ctrl-C or closed pipes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fusionbench_lite.errors import InputError
from fusionbench_lite.planning import refusals
from tests.conftest import ROOT

LITE = "fusionbench_lite"
REFUSED = [
    (LITE, ["metod=x"], "unknown key 'metod': did you mean 'method'?"),
    (LITE, ["--frobnicate"], "unrecognized arguments: --frobnicate: --help lists keys, --hydra-help flags"),
    (LITE, ["--seed", "3"], "unrecognized arguments: --seed: write seed=VALUE"),
    (LITE, ["--cfg"], "argument --cfg/-c: expected one argument"),
    (LITE, ["--cfg", "jobs"], "argument --cfg/-c: invalid choice: 'jobs'"),
    (LITE, ["tasks=ta,tb"], 'write "tasks=[ta,tb]"'),
    (LITE, ["data_dir="], "data_dir is empty"),
    (LITE, ["data_dir=~nobody-here/d"], "data_dir: ~nobody-here/d: ~nobody-here has no home folder"),
    (LITE, ["results_dir=file"], "file is no folder"),
    (LITE, ["-m", "results_dir=file/below", "seed=0,1"], "file is no folder"),
    (LITE, ["cache_dir=file"], "cache_dir="),
    (LITE, ["--config-dir=$NO_SUCH_VARIABLE"], "NO_SUCH_VARIABLE is not set"),
    (f"{LITE}.doctor", ["metod=x"], "unknown key 'metod'"),
    (f"{LITE}.doctor", ["doctor.format=xml"], "doctor.format must be one of text, json, got 'xml'"),
    (f"{LITE}.doctor", ["--frobnicate"], "'--frobnicate' sets nothing: write frobnicate=VALUE"),
    (f"{LITE}.doctor", ["preset=a (b)"], "write \"preset='a (b)'\""),
    (f"{LITE}.doctor", ["results_dir=file"], "file is no folder"),
    (f"{LITE}.finetune", ["finetune.out="], "finetune.out must be a path"),
    (f"{LITE}.finetune", ["finetune.outt=x"], "did you mean 'out'?"),
    (f"{LITE}.finetune", ["tasks=[ta,"], "the bracket is not closed"),
    (f"{LITE}.components", ["components.out="], "components.out must be a path"),
    (f"{LITE}.components", ["components.out=file"], "components.out="),
    (f"{LITE}.tables", ["--frobnicate"], "unrecognized arguments: --frobnicate: python -m fusionbench_lite.tables --help"),
    (f"{LITE}.tables", ["--format", "xml"], "argument --format: invalid choice: 'xml'"),
    (f"{LITE}.tables", ["mini/demmo"], "unknown experiment 'mini/demmo': did you mean 'mini/demo'?"),
    (f"{LITE}.tables", [], "no experiment has rows in results"),
    (f"{LITE}.tables", ["results_dir=x"], "options of tables are written as --results-dir=x"),
    (f"{LITE}.tables", ["results_dir=x (1)=y"], 'options of tables are written as "--results-dir=x (1)=y"'),
    (f"{LITE}.tables", ["method=cart"], "tables has no key 'method': give an experiment, or one of --scale, --format"),
    (f"{LITE}.tables", ["--results-dir", "~nobody-here"], "~nobody-here has no home folder"),
    (f"{LITE}.pictures", [], "the following arguments are required: what"),
    (f"{LITE}.pictures", ["mini/demmo"], "unknown experiment"),
    (f"{LITE}.pictures", ["mini/demo", "--seed", "x"], "argument --seed: invalid int value: 'x'"),
    (f"{LITE}.cache", ["prun"], "unknown action 'prun': did you mean 'prune'?"),
    (f"{LITE}.cache", ["kind=expert"], "did you mean 'experts'?"),
    (f"{LITE}.cache", ["prune", "older=3"], "older must be a time, as 30d or 12h"),
    (f"{LITE}.cache", ["verify", "keep=1GB"], "verify has no use for keep: leave it out"),
    (f"{LITE}.cache", ["--frobnicate"], "'--frobnicate' sets nothing: give KEY=VALUE"),
    (f"{LITE}.cache", ["cache_dir=nowhere"], "is no folder: nothing is cached there"),
    (f"{LITE}.records", ["lst"], "unknown action 'lst': did you mean 'list'?"),
    (f"{LITE}.records", ["results_dir=nowhere"], "results_dir=nowhere holds no records/"),
    (f"{LITE}.records", ["results_dir=~nobody-here"], "~nobody-here has no home folder"),
    (f"{LITE}.records", ["compare", "a"], "compare takes 2 records, got 1: a"),
    (f"{LITE}.export", [], "export takes 1 record, got 0"),
    (f"{LITE}.export", ["3f2a"], "export needs out=DIR, a new folder"),
    (f"{LITE}.export", ["3f2a", "9c01", "out=x"], "export takes 1 record, got 2"),
    (f"{LITE}.export", ["3f2a", "out="], "out must be a path"),
    (f"{LITE}.export", ["3f2a", "outt=x"], "did you mean 'out'?"),
    (f"{LITE}.export", ["3f2a", "out=x", "layout=open_clp"], "layout must be one of open_clip, transformers, peft, own"),
    (f"{LITE}.export", ["3f2a", "out=x", "select=best"], "select must be one of last, best_test, best_unsupervised"),
    (f"{LITE}.export", ["3f2a", "out=x", "limit=0"], "limit must be an integer of at least 1"),
    (f"{LITE}.export", ["3f2a", "out=x"], "results_dir=results holds no records/"),
    (f"{LITE}.export", ["3f2a", "out=x", "results_dir=~nobody-here"], "~nobody-here has no home folder"),
    (f"{LITE}.sizes", ["model=vit_b33"], "vit_b3"),
    (f"{LITE}.sizes", ["surgery.rnk=1"], "rnk"),
    (f"{LITE}.sizes", ["tasks=mini9"], "unknown task or task set 'mini9'"),
    (f"{LITE}.merge_files", [], "method is missing"),
    (f"{LITE}.merge_files", ["method=slerp", "base=x", "experts={a: x}", "out=y", "bse=x"], "did you mean 'base'?"),
    (f"{LITE}.merge_files", ["method=slrp", "base=x", "experts={a: x}", "out=y"], "did you mean 'slerp'?"),
    (f"{LITE}.merge_files", ["method=slerp", "base=x", "experts=x", "out=y"], "experts must be paths by task"),
    (f"{LITE}.merge_files", ["method=slerp", "base=x", "experts={a: x}", "out=y", "resize=mea"], "did you mean 'mean'?"),
    (f"{LITE}.merge_files", ["method=slerp", "base=x", "experts={a: x}", "out=y"], "'x' does not exist"),
    (f"{LITE}.evaluate_llm", [], "give one FOLDER, got none"),
    (f"{LITE}.evaluate_llm", ["--frobnicate"], "give one FOLDER, got --frobnicate"),
    (f"{LITE}.evaluate_llm", ["merged"], "no task is named"),
    (f"{LITE}.evaluate_llm", ["merged", "tsks=gsm8k"], "unknown key 'tsks': did you mean 'tasks'?"),
    (f"{LITE}.evaluate_llm", ["merged", "tasks=gsm8k,gsm8k"], "has 'gsm8k' 2 times"),
    (f"{LITE}.evaluate_llm", ["merged", "tasks=gsm8k,"], "tasks=gsm8k, has an empty name"),
    (f"{LITE}.evaluate_llm", ["merged", "tasks=alpaca_eval"], "alpaca_eval is judged by an external model"),
    (f"{LITE}.evaluate_llm", ["merged", "tasks=gsm8k,mbpp"], "mbpp: programs that the model writes would run on this machine"),
    (f"{LITE}.evaluate_llm", ["merged", "tasks=gsm8k", "limit=0"], "limit must be an integer of at least 1"),
    (f"{LITE}.evaluate_llm", ["merged", "tasks=gsm8k"], "merged is no folder"),
    (f"{LITE}.evaluate_llm", ["file", "tasks=gsm8k"], "file is no folder"),
    (f"{LITE}.evaluate_llm", ["merged", "tasks=gsm8k", "individual.math=x"], "individual.math: 'math' is not evaluated"),
    (f"{LITE}.evaluate_llm", ["merged", "tasks=gsm8k", "individual.gsm8k="], "individual.gsm8k is empty"),
    (f"{LITE}.evaluate_llm", ["merged", "tasks=gsm8k", "individual=x.json"], "x.json is no file"),
    (f"{LITE}.evaluate_llm", ["merged", "tasks=gsm8k", "individual=file"], "file is no record of evaluate_llm"),
    (f"{LITE}.evaluate_llm", ["merged", "tasks=arc_easy", "individual=published"], "doGe, Table 10 has no 'arc_easy'"),
    (f"{LITE}.convert", [], "give SOURCE and OUT, got 0 paths"),
    (f"{LITE}.convert", ["modl=vit_b32", "a", "b"], "unknown key 'modl': did you mean 'model'?"),
    (f"{LITE}.convert", ["nothing.pt", "out.safetensors"], "nothing.pt is no file"),
]
COMMANDS = sorted({module for module, _, _ in REFUSED})


@pytest.mark.parametrize(("module", "line", "said"), REFUSED, ids=[" ".join([m, *line]) for m, line, _ in REFUSED])
def test_one_line_and_status_2(command, tmp_path, module, line, said):
    (tmp_path / "file").touch()
    done = command(*line, module=module)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("fusionbench_lite: ")
    assert done.stderr.count("\n") == 1
    assert said in done.stderr
    assert "Exception" not in done.stderr
    assert not done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["file"]  # nothing was made


@pytest.mark.parametrize("module", COMMANDS)
def test_help_of_every_command(command, module):
    done = command("--help", module=module)
    assert (done.returncode, done.stderr) == (0, "")
    assert module in done.stdout or module == LITE


def test_every_command_is_tried():
    of_their_own = {f"{LITE}.{path.stem}" for path in (ROOT / LITE).glob("*.py") if "\ndef main(" in path.read_text()}
    assert {LITE, f"{LITE}.tables", *of_their_own} - {f"{LITE}.__main__"} == set(COMMANDS)


def test_help_says_how_to_quote(command):
    text = command("--help").stdout
    for words in ('"data_dir=~/my data (v2)"', "results_dir=lr=1e-3,v2", '"tasks=[cat set,R&D]"', "docs/command_line.md"):
        assert words in text


def started(module: str, *line: str, folder: Path, **given) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-m", module, *line], cwd=folder, env=environment, stderr=subprocess.PIPE, text=True, **given
    )


@pytest.mark.parametrize("line", [[LITE, "--help"], [LITE, "--cfg", "job"], [f"{LITE}.tables", "--help"]], ids=" ".join)
def test_a_pipe_that_is_closed_is_no_traceback(tmp_path, line):
    reader, writer = os.pipe()
    os.close(reader)  # as after `| head -0`
    with open(writer, "w") as out:  # noqa: PTH123
        process = started(*line, folder=tmp_path, stdout=out)
    assert process.communicate(timeout=60)[1] == ""
    assert process.returncode == 0


def _hear_interruptions():
    """A shell starts what runs in its background with interruptions ignored, tests as well."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_an_interruption_is_a_line(tmp_path):
    """The process is asked while it waits, so that the signal comes when the command runs."""
    code = (
        "import sys, time, fusionbench_lite.__main__ as command\n"
        "from fusionbench_lite.planning import usage\n"
        "usage.text = lambda arguments: (print('here', flush=True), time.sleep(60))\n"
        "sys.argv = ['fusionbench_lite', '--help']\n"
        "sys.exit(command.main())"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=_hear_interruptions,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "here\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60)[1] == "interrupted: the same command continues from the last checkpoint\n"
    assert process.returncode == 1


def test_an_interruption_while_hydra_is_imported_is_a_line(tmp_path):
    slow = tmp_path / "hydra"
    slow.mkdir()
    (slow / "__init__.py").write_text("import time\nprint('here', flush=True)\ntime.sleep(60)\n")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    process = subprocess.Popen(
        [sys.executable, "-m", LITE, "--help"], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, preexec_fn=_hear_interruptions,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "here\n"
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60)[1] == "interrupted: the same command continues from the last checkpoint\n"


def test_how_a_command_ends(capsys, monkeypatch):
    def raising(error):
        def run():
            raise error

        return run

    monkeypatch.delenv(refusals.TRACEBACKS, raising=False)
    assert refusals.exit_status(lambda: 7) == 7
    assert refusals.exit_status(raising(InputError("two\nlines"))) == 2
    assert capsys.readouterr().err == "fusionbench_lite: two lines\n"
    assert refusals.exit_status(raising(KeyboardInterrupt())) == 1
    assert capsys.readouterr().err == "interrupted\n"
    with pytest.raises(ZeroDivisionError):
        refusals.exit_status(raising(ZeroDivisionError()))
    monkeypatch.setenv(refusals.TRACEBACKS, "1")
    with pytest.raises(InputError):
        refusals.exit_status(raising(InputError("asked for")))
