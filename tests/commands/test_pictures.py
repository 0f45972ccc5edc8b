"""Pictures of adaptive records: what they show, what they leave out, and that they need no torch."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from safetensors.numpy import save_file

from fusionbench_lite.errors import InputError
from fusionbench_lite.pictures import draw, main
from fusionbench_lite.tables import coefficient_pictures, course_pictures, layers, learned, mask_pictures, records, style
from fusionbench_lite.tables.rows import Row, Rows, write_rows
from tests.support.record_factory import TASKS, store

STEM = ("conv1.weight", "class_embedding", "ln_pre.weight", "positional_embedding")
BLOCK = ("ln_1.weight", "attn.in_proj_weight", "attn.in_proj_bias", "ln_2.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
NAMES = [*STEM, *(f"transformer.resblocks.{n}.{name}" for n in range(11) for name in BLOCK), "ln_post.weight", "proj"]
MATRICES = [name for name in NAMES if name.endswith("weight") and ("attn" in name or "mlp" in name)]
RANK, STEPS, DPI = 8, 40, 60


@pytest.fixture(autouse=True)
def _coarse(monkeypatch):
    """A picture's size is most of its cost."""
    monkeypatch.setattr(style, "DPI", DPI)


def _record(folder, seed=0, method="adarank_ta", *, spectrum=True, trajectory=True, held_out=True, common=False, **given):
    """A record of an adaptive run with every file, made up."""
    settings = {"scaling": {"value": 0.3, "source": "default"}, "rank_ratio": {"value": 0.5, "source": "default"}}
    accuracy = dict.fromkeys(TASKS, 0.8)
    key = store(folder, method, accuracy, best=accuracy, seed=seed, hyperparameters=settings, **given)
    record = records.find(folder, key)
    generator = np.random.default_rng(seed)
    values = (0.3 + generator.normal(0, 0.1, (len(NAMES), 4))).astype(np.float32)
    tensors = {f"coefficients/{name}": line for name, line in zip(NAMES, values, strict=True)}
    tensors["state/x"] = np.zeros(2, np.float32)
    for name in MATRICES:
        tensors[f"masks/{name}"] = generator.random((4, RANK)) < 0.6
        if spectrum:
            tensors[f"spectrum/{name}"] = np.tile(0.5 ** np.arange(RANK, dtype=np.float32), (4, 1))
        if common:
            tensors[f"coefficients/{name}/common"] = np.array([0.5], np.float32)
            tensors[f"masks/{name}/common"] = np.ones((1, 3), bool)
    save_file(tensors, record.path / "learned.safetensors", metadata={"tasks": ",".join(TASKS)})
    if trajectory:
        course = np.stack([np.full_like(values, 0.3), values])
        np.savez(record.path / "trajectory.npz", steps=np.array([0, STEPS]), coefficients=course, names=np.array(NAMES))
    losses = np.r_[[np.full(4, np.nan)], 1 / np.arange(1, STEPS + 1)[:, None] + 0.1 * generator.random((STEPS, 4))]
    frame = pd.DataFrame(losses, columns=[f"loss/{task}" for task in TASKS]).rename_axis("step")
    frame.insert(0, "loss", losses.sum(1))
    for position, column in enumerate(("average", *(f"accuracy/{task}" for task in TASKS))):
        frame[column] = np.where(np.arange(STEPS + 1) % 20 == 0, 0.7 + 0.01 * position + 0.01 * seed, np.nan)
    if held_out:
        frame["held_out"] = np.where(np.arange(STEPS + 1) % 20 == 0, 3.0 - 0.01 * np.arange(STEPS + 1), np.nan)
    frame.to_csv(record.path / "history.csv")
    return record


def test_a_record_gives_every_picture_with_its_numbers(tmp_path, capsys):
    record = _record(tmp_path)
    assert main([record.key, "--results-dir", str(tmp_path)]) == 0
    out, error = capsys.readouterr()
    folder = tmp_path / "pictures" / record.path.name
    names = {"coefficients", "trajectory", "masks", "ranks", "losses"}
    assert {path.name for path in folder.iterdir()} == {f"{name}.{end}" for name in names for end in ("png", "csv")}
    assert len(out.splitlines()) == 10
    assert error == ""
    for name in names:
        with Image.open(folder / f"{name}.png") as picture:
            assert min(picture.size) > 2.5 * DPI
    coefficients = pd.read_csv(folder / "coefficients.csv")
    found = learned.read_learned(record)
    assert coefficients["tensor"].tolist() == NAMES
    assert coefficients.loc[5, "signs"] == pytest.approx(found.coefficients[NAMES[5]][2], rel=1e-6)
    masks = pd.read_csv(folder / "masks.csv")
    line = masks[(masks["matrix"] == MATRICES[3]) & (masks["component"] == 2)].iloc[0]
    assert line["tasks_on"] == found.masks[MATRICES[3]][:, 2].sum()
    ranks = pd.read_csv(folder / "ranks.csv")
    assert len(ranks) == 4 * len(MATRICES)
    assert set(ranks["intrinsic_rank"]) == {3}
    assert ranks["learned_rank"].sum() == sum(bits.sum() for bits in found.masks.values())
    course = pd.read_csv(folder / "trajectory.csv")
    final = np.array([found.coefficients[name] for name in NAMES])
    last = course[(course["task"] == "letters") & (course["step"] == STEPS)].iloc[0]
    assert last["median"] == pytest.approx(np.median(final[:, 1]), rel=1e-6)
    assert last["q95"] == pytest.approx(np.quantile(final[:, 1], 0.95), rel=1e-6)
    again = draw(str(record.path), "elsewhere", tmp_path / "again")
    assert len(again) == 10
    assert all(path.read_bytes() == (folder / path.name).read_bytes() for path in again)


def test_what_a_record_does_not_hold_is_left_out_and_said(tmp_path, capsys):
    record = _record(tmp_path, spectrum=False, trajectory=False, held_out=False)
    names = {path.stem for path in draw(record.key, tmp_path, tmp_path / "out")}
    error = capsys.readouterr().err
    assert names == {"coefficients", "masks", "ranks", "losses"}
    assert "no trajectory.npz" in error
    assert "no spectra" in error
    assert pd.read_csv(tmp_path / "out" / "ranks.csv")["intrinsic_rank"].isna().all()
    (record.path / "learned.safetensors").unlink()
    assert {path.stem for path in draw(record.key, tmp_path, tmp_path / "less")} == {"losses"}
    assert "no coefficients" in capsys.readouterr().err


def test_common_blocks_and_task_wise_coefficients(tmp_path):
    record = _record(tmp_path, method="adarank_iso_cts", common=True)
    found = learned.read_learned(record)
    coefficient_pictures.draw_map(record, found, tmp_path / "out" / "coefficients.png")
    mask_pictures.draw_masks(record, found, tmp_path / "out" / "masks.png")
    coefficients = pd.read_csv(tmp_path / "out" / "coefficients.csv")
    assert coefficients["common block"].notna().sum() == len(MATRICES)
    masks = pd.read_csv(tmp_path / "out" / "masks.csv")
    assert (masks[masks["matrix"].str.endswith("/common")]["tasks_on"] == 1).all()
    same = learned.Learned(TASKS, dict.fromkeys(NAMES, np.arange(4.0)), {}, {})
    written = coefficient_pictures.draw_map(record, same, tmp_path / "out" / "taskwise.png")
    assert pd.read_csv(written[1])["garments"].tolist() == [3.0] * len(NAMES)


def test_an_experiment_draws_its_adaptive_rows_over_each_other(tmp_path):
    methods = {"A": "adarank_ta", "B": "surgery"}
    runs = {name: [_record(tmp_path, seed, method, trajectory=False) for seed in range(3)] for name, method in methods.items()}
    for run in (*runs["A"], *runs["B"]):
        (run.path / "learned.safetensors").unlink()
    plain = store(tmp_path, "tsv_m", dict.fromkeys(TASKS, 0.8))
    rows = [Row(name, found[0].method, tuple(one.key for one in found)) for name, found in runs.items()]
    write_rows(tmp_path, Rows("mini/demo", "A demonstration", (Row("static", "tsv_m", (plain,)), *rows)))
    written = draw("mini/demo", tmp_path)
    assert [path.name for path in written] == ["adaptive_rows.png", "adaptive_rows.csv"]
    numbers = pd.read_csv(written[1])
    assert set(numbers["row"]) == {"A", "B"}
    line = numbers[(numbers["row"] == "A") & (numbers["quantity"] == "average") & (numbers["step"] == 20)].iloc[0]
    assert line["mean"] == pytest.approx(71.0)
    assert line["std"] == pytest.approx(1.0)
    assert line["seeds"] == 3
    assert course_pictures.objective(runs["A"][0]) != course_pictures.objective(runs["B"][0])
    alone = draw("mini/demo", tmp_path, tmp_path / "seed1", seed=1)
    assert {path.parent.name for path in alone} == {"seed1", "A", "B"}
    numbers = pd.read_csv(alone[1])
    assert numbers["std"].isna().all()
    with pytest.raises(InputError, match="seed 7"):
        draw("mini/demo", tmp_path, seed=7)


def test_running_mean_and_intrinsic_rank():
    values = np.array([1.0, 2.0, 6.0, 3.0, 8.0])
    assert course_pictures.running_mean(values, 3) == pytest.approx([1.5, 3, 11 / 3, 17 / 3, 5.5])
    assert course_pictures.running_mean(values, 1) == pytest.approx(values)
    assert course_pictures.window_of(400) == 21
    assert mask_pictures.intrinsic_rank(np.array([3.0, 4.0, 0.0])) == 2
    assert mask_pictures.intrinsic_rank(np.zeros(3)) == 0
    assert mask_pictures.intrinsic_rank(np.ones(20)) == 19
    assert mask_pictures.intrinsic_rank(np.ones(40)) == 38


def test_tensors_find_their_order_and_their_group():
    first = [f"transformer.resblocks.0.{name}" for name in BLOCK]
    assert [found.name for found in layers.arrange(sorted(NAMES))][len(STEM) : len(STEM) + len(BLOCK)] == first
    runs = layers.groups(layers.arrange(sorted(NAMES)))
    assert [label for label, _, _ in runs] == ["stem", *map(str, range(11)), "end"]
    assert runs[0][2] == len(STEM)
    assert layers.arrange(NAMES, sorted(NAMES)) == layers.arrange(NAMES)
    given = layers.arrange(sorted(NAMES), NAMES)
    assert [found.name for found in given] == NAMES
    kinds = {layers.place(name).family for name in NAMES}
    assert kinds == set(layers.FAMILIES)
    hugging_face = layers.place("vision_model.encoder.layers.10.self_attn.q_proj.weight")
    assert (hugging_face.block, hugging_face.kind, hugging_face.family) == ("10", "self_attn.q_proj.weight", layers.ATTENTION)
    leftovers = layers.arrange(["model.visual.conv1.weight", "model.token_embedding.weight", "model.visual.proj"])
    assert [found.block for found in leftovers] == ["stem", "end", "text"]
    t5 = layers.groups(layers.arrange(["encoder.block.0.layer.0.q.weight", "decoder.block.0.layer.0.q.weight"]))
    assert [label for label, _, _ in t5] == ["enc 0", "dec 0"]


def test_labels_are_kept_apart():
    assert style.spread([1.0, 5.0], 2.0) == [1.0, 5.0]
    places = style.spread([1.0, 1.0, 1.5, 9.0], 2.0)
    assert sorted(places) == places
    assert min(np.diff(places)) >= 2.0 - 1e-9
    assert style.spread([8.0, 9.0, 9.5, 9.9], 2.0, 0.0, 10.0) == [4.0, 6.0, 8.0, 10.0]
    assert style.spread([9.0, 9.0, 9.0], 8.0, 0.0, 10.0) == [0.0, 5.0, 10.0]


def test_bad_input_is_refused_in_one_line(tmp_path, capsys):
    record = _record(tmp_path)
    static = store(tmp_path, "tsv_m", dict.fromkeys(TASKS, 0.8))
    for what, message in (
        ("0" * 16, "no complete record"), (static, "learns nothing"), ("mini/dem", "unknown experiment"),
    ):
        assert main([what, "--results-dir", str(tmp_path)]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert main([record.key, "--results-dir", str(tmp_path), "--seed", "3"]) == 2
    (record.path / "learned.safetensors").write_bytes(b"rubbish")
    assert main([record.key, "--results-dir", str(tmp_path)]) == 2
    assert "overwrite=true" in capsys.readouterr().err.splitlines()[-1]


def test_no_torch(tmp_path):
    record = _record(tmp_path)
    (record.path / "history.csv").unlink()
    (record.path / "trajectory.npz").unlink()
    code = f"import sys; from fusionbench_lite.pictures import draw; draw({str(record.path)!r}, '.', {str(tmp_path / 'o')!r});"
    code += "from fusionbench_lite.tables import component_pictures; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr
