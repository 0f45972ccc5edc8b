"""Bad names, keys and values: one line that names the thing and the fix, exit status 2, before torch is imported."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

REFUSALS = [
    (["method=adarnk"], "unknown method 'adarnk': did you mean 'adarank'?"),
    (["metod=x"], "unknown key 'metod': did you mean 'method'?"),
    (["method=ties_merging", "method.kep=1"], "unknown key 'method.kep': did you mean 'method.keep'?"),
    (["method.keep=1"], "unknown key 'method.keep': did you mean 'method.id'?"),
    (["method=ties_merging", "method.keep=3"], "keep must be a finite number in (0, 1], got 3"),
    (["method.scaling=abc"], "scaling must be a finite number in (-inf, inf), got 'abc'"),
    (["method.scaling=nan"], "scaling must be a finite number in (-inf, inf), got nan"),
    (["method=adarank", "method.base=tsv"], "unknown method.base 'tsv': did you mean 'tsvm'?"),
    (["method=adarank", "method.adaptation.stream=redrw"], "cycle, sequential (did you mean 'redraw'?), got 'redrw'"),
    (["method=adarank", "method.adaptation.batch_size=0"], "batch_size must be an integer of at least 1, got 0"),
    (["+method.foo=1"], "has no hyperparameter 'foo'"),
    (["+foo=1"], "unknown key 'foo'"),
    (["checkpoints.sed=1"], "unknown key 'checkpoints.sed': did you mean 'checkpoints.seed'?"),
    (["model=vit_min"], "unknown model 'vit_min': did you mean 'vit_mini'?"),
    (["model=3"], "write a name"),
    (["tasks=mini9"], "unknown task or task set 'mini9': did you mean 'mini8'?"),
    (["tasks=[digits,leters]"], "unknown task or task set 'leters': did you mean 'letters'?"),
    (["tasks=[digits,digits]"], "tasks lists 'digits' 2 times"),
    (["tasks=[]"], "tasks is empty"),
    (["tasks=20"], "model vit_mini has no data for task 'sun397': use tasks=mini8"),
    (["tasks=true"], "unknown task or task set 'true'"),
    (["tasks=[digits,"], "tasks=[digits,: the bracket is not closed"),
    (["tasks=real32"], "add data_dir=FOLDER"),
    (["tasks=real32", "data_dir=/no/such/folder"], "data_dir /no/such/folder is not a directory"),
    (["seed=abc"], "'abc' of type 'str' could not be converted to Integer"),
    (["seed=-1"], "seed must be an integer of at least 0, got -1"),
    (["limit=0"], "limit must be an integer of at least 1 or null, got 0"),
    (["steps=5"], "steps=5 has no meaning for method 'task_arithmetic'"),
    (["method=adarank", "steps=-5"], "steps must be an integer of at least 0, got -5"),
    (["select=best"], "expected one of [last, best_test, best_unsupervised]"),
    (["precision=fp8"], "expected one of [fp32, bf16]"),
    (["device=gpu"], "device must be auto, cpu, cuda or a numbered one, as cuda:1 (did you mean 'cpu'?), got 'gpu'"),
    (["logger=wandbb"], "unknown logger 'wandbb': did you mean 'wandb'?"),
    (["experiment=mini/demmo"], "unknown experiment 'mini/demmo': did you mean 'mini/demo'?"),
    (["hydra/launcher=slrum"], "unknown hydra/launcher 'slrum': did you mean 'slurm'?"),
]


@pytest.fixture
def refuse(monkeypatch, capsys, tmp_path):
    """Run the command line in this process and return exit status and standard error."""
    from hydra.core.global_hydra import GlobalHydra

    import fusionbench_lite.__main__ as cli

    def run(*arguments: str) -> tuple[int, str]:
        GlobalHydra.instance().clear()
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["fusionbench_lite", *arguments])
        monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
        return cli.main(), capsys.readouterr().err

    return run


@pytest.mark.parametrize(("arguments", "message"), REFUSALS, ids=[" ".join(a) for a, _ in REFUSALS])
def test_one_line_names_the_thing_and_the_fix(refuse, tmp_path, arguments, message):
    status, error = refuse(*arguments)
    assert status == 2
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.rglob("*.json"))


def test_a_sweep_refuses_each_bad_job_and_exits_with_2(refuse):
    status, error = refuse("-m", "method=ties_merging", "method.keep=2,3")
    assert status == 2
    assert "got 2" in error
    assert "got 3" in error


def test_refusals_do_not_import_torch():
    code = (
        "import sys, fusionbench_lite.__main__ as cli; sys.argv = ['x', 'method=ties_merging', 'method.keep=3'];"
        "status = cli.main(); print(status, 'torch' in sys.modules, 'lightning' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "2 False False"


def test_the_environment_is_left_as_it_was(refuse):
    refuse("method.scaling=abc")
    assert "HYDRA_FULL_ERROR" not in os.environ


def test_full_error_on_request(process):
    done = process("method=ties_merging", "method.keep=3", env={"HYDRA_FULL_ERROR": "1"})
    assert done.returncode == 1
    assert "Traceback" in done.stderr


@pytest.mark.parametrize(("argument", "status"), [("--help", 0), ("method=adarnk", 2)])
def test_the_exit_status_is_that_of_the_process(process, argument, status):
    """1 is in the test above: here the interpreter has to end with what `main` returns."""
    done = process(argument)
    assert done.returncode == status
    assert bool(done.stdout) == (status == 0)
    assert len(done.stderr.splitlines()) == (status == 2)


def test_a_sweep_over_methods_checks_the_settings_of_each(command):
    wrong = command("-m", "method=adarank_ta,adamerging_taskwise", "method.adaptation.batchsize=4", "steps=1")
    assert wrong.returncode == 2
    assert "batchsize" in wrong.stderr
    assert "did you mean 'batch_size'" in wrong.stderr
    mixed = command("-m", "method=tsv_m,cart", "method.keep=0.1")
    assert mixed.returncode == 2
    assert "method 'tsv_m' has no hyperparameter 'keep'" in mixed.stderr
