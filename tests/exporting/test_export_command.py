"""The command: what it refuses, what it leaves behind, and the card that it writes."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import fusionbench_lite as fbl
from fusionbench_lite.errors import InputError, MergeError
from fusionbench_lite.tables import records

SMALL = (
    "tasks=[digits,signs]", "limit=40", "model=vit_mini_small",
    "checkpoints.recipe={pretrain_steps: 4, finetune_steps: 6, multitask_steps: 3}",
)
EXPORT = "fusionbench_lite.export"


@pytest.fixture(scope="module")
def made(module_command):
    """A record of an adaptation that evaluated twice, one of masks, and the folder they were made in."""
    command, folder = module_command
    settings = ("steps=4", "method.adaptation.eval_every=2", "method.adaptation.batch_size=4")
    for line in (("method=adarank", *settings), ("method=tall_masks",)):
        done = command(*line, *SMALL)
        assert done.returncode == 0, done.stderr
    found = {record.method: record for record in records.read_all(folder / "results")}
    return command, folder, found["adarank_cart"], found["tall_masks"]


@pytest.fixture
def copied(made, tmp_path):
    """The adaptation's record in a results folder that a test may spoil."""
    command, _, record, _ = made
    place = tmp_path / "results" / "records" / record.path.name
    shutil.copytree(record.path, place)
    return command, place


def refused(command, *line: str) -> str:
    done = command(*line, module=EXPORT)
    assert done.returncode == 2, done.stdout + done.stderr
    (said,) = done.stderr.strip().splitlines()[-1:]
    assert said.startswith("fusionbench_lite: ")
    assert "Traceback" not in done.stderr
    return said


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (["out=x"], "export takes 1 record, got 0"),
        (["KEY", "KEY", "out=x"], "export takes 1 record, got 2"),
        (["KEY"], "export needs out=DIR"),
        (["KEY", "out="], "out"),
        (["KEY", "out=x", "layuot=own"], "'layuot': did you mean 'layout'?"),
        (["KEY", "out=x", "layout=onnx"], "layout must be"),
        (["KEY", "out=x", "layout=transformers"], "are not written with layout=transformers"),
        (["KEY", "out=x", "limit=0"], "limit must be"),
        (["KEY", "out=x", "select=best"], "select must be"),
        (["ffffzz", "out=x"], "has the key 'ffffzz'"),
        (["KEY", "out=x", "results_dir=nowhere"], "holds no records/"),
        (["KEY", "out=full"], "is not empty (a file)"),
        (["KEY", "out=full/a file"], "is a file"),
        (["KEY", "out=."], "which the record is read from"),
        (["KEY", "out=results"], "contains"),
    ],
)
def test_what_cannot_be_is_one_line(made, line: list[str], said: str):
    command, folder, record, _ = made
    (folder / "full").mkdir(exist_ok=True)
    (folder / "full" / "a file").write_text("mine")
    given = [record.key if word == "KEY" else word for word in line]
    assert said in refused(command, *given)
    assert (folder / "full" / "a file").read_text() == "mine"
    assert not (folder / "x").exists()


def changed(place, change) -> None:
    file = place / "result.json"
    data = json.loads(file.read_text())
    change(data)
    file.write_text(json.dumps(data))


def test_a_checkpoint_that_is_another_is_named_with_both_hashes(copied, tmp_path):
    """Those that were trained here are not those that the record says it had."""
    command, place = copied

    def other(data):
        data["checkpoints"]["files"]["pretrained.safetensors"] = "f" * 64

    changed(place, other)
    said = refused(command, str(place), f"out={tmp_path / 'out'}")
    assert f"the checkpoint 'pretrained.safetensors' had SHA-256 {'f' * 64} and has " in said
    changed(place, lambda data: data["checkpoints"].update(files={}))
    changed(place, lambda data: data["data"].update(signs="0" * 64))
    assert f"the data of task 'signs' had SHA-256 {'0' * 64} and has" in refused(command, str(place), f"out={tmp_path / 'out'}")


def test_other_data_and_other_versions_are_refused(copied, tmp_path):
    command, place = copied
    changed(place, lambda data: data["hyperparameters"]["lr"].update(value=0.5))
    said = refused(command, str(place), f"out={tmp_path / 'out'}")
    assert "cannot be made again here" in said
    changed(place, lambda data: data["hyperparameters"].update(gone={"value": 1, "source": "given"}))
    assert "has gone=1, which adarank_cart of version" in refused(command, str(place), f"out={tmp_path / 'out'}")
    changed(place, lambda data: data.update(schema_version=9))
    assert "is a record of schema version 9" in refused(command, str(place), f"out={tmp_path / 'out'}")


def test_what_was_learned_has_to_be_there(copied, tmp_path):
    command, place = copied
    out = f"out={tmp_path / 'out'}"
    stored = load_file(place / "learned.safetensors")
    save_file({name: tensor for name, tensor in stored.items() if not name.startswith("state/")}, place / "learned.safetensors")
    assert "is not what this method learns" in refused(command, str(place), out, "select=last")
    (place / "learned.safetensors").write_bytes(b"cut")
    assert "is not what this method learns" in refused(command, str(place), out, "select=last")
    (place / "learned.safetensors").unlink()
    assert "has kept nothing that was learned for select=last" in refused(command, str(place), out, "select=last")
    (place / "samples.npz").unlink()
    assert "is no whole record: samples.npz is missing" in refused(command, str(place), out)


def test_a_selection_is_exported_where_its_learned_values_were_kept(copied, tmp_path):
    command, place = copied
    data = json.loads((place / "result.json").read_text())
    done = command(str(place), f"out={tmp_path / 'best'}", "select=best_test", module=EXPORT)
    assert done.returncode == 0, done.stderr
    card = (tmp_path / "best" / "README.md").read_text()
    assert f"Selection: best\\_test, step {data['selections']['best_test']['step']}" in card
    for file in place.glob("learned-*.safetensors"):
        file.unlink()
    for rule, chosen in data["selections"].items():
        if chosen["step"] != data["selections"]["last"]["step"]:
            assert "has kept nothing" in refused(command, str(place), f"out={tmp_path / 'no'}", f"select={rule}")


def test_predictions_that_differ_leave_nothing(copied, tmp_path):
    """The record's predictions are changed behind its back: the files do not predict them."""
    command, place = copied
    with np.load(place / "samples.npz") as samples:
        arrays = dict(samples)
    arrays["last/digits/predictions"] = (arrays["last/digits/predictions"] + 1) % 10
    np.savez(place / "samples.npz", **arrays)
    done = command(str(place), f"out={tmp_path / 'out'}", "select=last", module=EXPORT)
    assert done.returncode == 1
    assert "digits: 0 of 40 predictions equal, the first other one is example 0" in done.stdout
    assert "nothing is written: 40 predictions on 1 tasks are not the record's" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["results"]
    done = command(str(place), f"out={tmp_path / 'out'}", "select=last", "verify=false", module=EXPORT)
    assert done.returncode == 0
    assert "not compared (verify=false)" in done.stdout
    assert "without comparing" in (tmp_path / "out" / "README.md").read_text()


def test_a_trial_compares_the_first_examples(made, tmp_path):
    command, _, record, _ = made
    done = command(str(record.path), f"out={tmp_path / 'out'}", "limit=7", module=EXPORT)
    assert done.returncode == 0, done.stderr
    assert "digits: 7 of 7 predictions equal" in done.stdout
    assert "TRIAL" in done.stdout


def test_the_card_says_what_it_is(made, tmp_path):
    command, _, record, _ = made
    out = tmp_path / "a [folder] of mine"
    assert command(record.key[:5], f"out={out}", module=EXPORT).returncode == 0
    text = (out / "README.md").read_text(encoding="utf-8")
    _, front, body = text.split("---\n", 2)
    assert yaml.safe_load(front)["tags"] == ["model-merging", "adarank_cart", "vit_mini_small"]
    assert f"| pretrained.safetensors | made by the run | {record.data['checkpoints']['files']['pretrained.safetensors']} |" in body
    for name, setting in record.data["hyperparameters"].items():
        assert re.search(rf"\| {re.escape(name.replace('_', chr(92) + '_'))} \| .* \| {setting['source'].split()[0]}", body), name
    again = re.search(r"^python -m fusionbench_lite (.*)$", body, re.M)[1]
    assert "found in" in command(*shlex.split(again)).stdout
    export = re.search(r"^python -m fusionbench_lite\.export (.*)$", body, re.M)[1]
    assert command(*shlex.split(export.replace("out=DIR", f"out='{tmp_path / 'again'}'")), module=EXPORT).returncode == 0
    code = re.search(r"```python\n(.*?)```", body, re.S)[1]
    names = {"images": torch.zeros(2, 32, 32, 3, dtype=torch.uint8)}
    exec(code.replace(repr(out.name), repr(str(out))), names)  # the card's own lines
    assert names["logits"].shape == (2, len(names["names"]))


def test_a_loaded_model_says_what_is_wrong(made, tmp_path):
    command, _, _, masks = made
    out = tmp_path / "out"
    assert command(str(masks.path), f"out={out}", module=EXPORT).returncode == 0
    model = fbl.load_exported(out)
    x = model.prepare(torch.zeros(1, 32, 32, 3, dtype=torch.uint8))
    with pytest.raises(MergeError, match="name one of digits, signs"):
        model.features(x)
    with pytest.raises(MergeError, match="unknown task 'digit': did you mean 'digits'"):
        model.logits(x, "digit")
    with pytest.raises(InputError, match="there is no folder"):
        fbl.load_exported(tmp_path / "gone")
    with pytest.raises(InputError, match=r"has no export\.json"):
        fbl.load_exported(tmp_path)
    said = json.loads((out / "export.json").read_text())
    wrong = (({"format": 9}, "is of format 9"), ({"form": "other"}, "none that this version knows"), ({"heads": []}, "is no dict"))
    for change, words in wrong:
        (out / "export.json").write_text(json.dumps({**said, **change}))
        with pytest.raises(InputError, match=words):
            fbl.load_exported(out)
    (out / "export.json").write_text(json.dumps(said))
    parts = load_file(out / "parts.safetensors")
    save_file({name: tensor for name, tensor in parts.items() if not name.startswith("bits/")}, out / "parts.safetensors")
    with pytest.raises(InputError, match="lacks 'bits/"):
        fbl.load_exported(out)
    (out / "parts.safetensors").write_bytes(b"no")
    with pytest.raises(InputError, match="cannot be read"):
        fbl.load_exported(out)


def test_published_numbers_stand_beside_the_scores(made, tmp_path):
    """A note of a run that a published table asks for leads from the record to the number; other notes lead nowhere."""
    from fusionbench_lite.exporting.published import numbers_of
    from fusionbench_lite.planning.experiments.runs import run_of, write_note

    _, folder, record, _ = made
    results = folder / "results"
    (results / "runs").mkdir(exist_ok=True)
    (results / "runs" / "broken.json").write_text("[1")
    (results / "runs" / "list.json").write_text("[1]")
    assert numbers_of(record, "last") == {}
    write_note(results, run_of(["method=adarank_cart", "model=gpt2", "seed=0", "tasks=glue7"]), record.key)
    found = numbers_of(record, "last")
    (said,) = [one for one in found["average"] if "adarank, table 18" in one]
    assert float(said.split()[0]) > 0
    assert numbers_of(record, "best_test") == {}
    for path in (results / "runs").iterdir():
        path.unlink()


def test_a_link_to_a_record_and_folders_with_odd_names(command, tmp_path, shared_cache):
    """Blanks, brackets, commas and an equals sign in every path."""
    odd = tmp_path / "it's [a], b=c ü"
    odd.mkdir()
    done = command("method=weight_averaging", *SMALL, f"results_dir={odd}")
    assert done.returncode == 0, done.stderr
    (place,) = (odd / "records").iterdir()
    (tmp_path / "link").symlink_to(place)
    cache = tmp_path / "the [cache], too"
    cache.symlink_to(shared_cache)
    done = command(str(tmp_path / "link"), f"out={odd / 'x y'}", f"cache_dir={cache}", module=EXPORT)
    assert done.returncode == 0, done.stderr
    assert (odd / "x y" / "model.safetensors").is_file()
    done = command(place.name.rpartition("-")[2][:4], f"out={odd / 'z'}", f"results_dir={odd}", module=EXPORT)
    assert done.returncode == 0, done.stderr


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from fusionbench_lite import export; assert export.main(['--help']) == 0; "
        "sys.exit(', '.join({'torch', 'open_clip', 'transformers', 'hydra', 'pandas'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "RECORD" in done.stdout
