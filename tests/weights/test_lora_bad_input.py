"""Adapters that are refused: one line that names the folder, the tensor, both values and the fix."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch

import fusionbench_lite as fbl
from fusionbench_lite.weights.lora import read_adapter
from tests.support.helpers import State
from tests.support.lora_files import PREFIX, base_state, draw, factors, linear_tensors, write_adapter

Q, Q_A, Q_B = "encoder.0.q.weight", f"{PREFIX}encoder.0.q.lora_A.weight", f"{PREFIX}encoder.0.q.lora_B.weight"
WEIGHTS = "adapter_model.safetensors"


def refuse(folder: Path, *parts: str, base: State | None = None, read: str | None = None) -> None:
    """The adapter is refused in one line with its folder and `parts`, `read`: not before that tensor is asked for."""
    base = base_state() if base is None else base
    expert = None if read is None else read_adapter(folder, base)
    with pytest.raises(fbl.MergeError) as caught:
        _ = read_adapter(folder, base) if expert is None else expert[read]
    message = str(caught.value)
    assert "\n" not in message
    for part in (str(folder), *parts):
        assert part in message, f"{part!r} is not in {message!r}"


def refuse_tensors(folder: Path, changes: dict, *parts: str, **given) -> None:
    """The same for the adapter of q and v with some tensors changed, or removed (None)."""
    tensors = {key: value for key, value in {**linear_tensors(), **changes}.items() if value is not None}
    refuse(write_adapter(folder, tensors), *parts, **given)


# ---------------------------------------------------------------- files


def test_no_adapter(tmp_path):
    refuse(tmp_path / "missing", "adapter_config.json", "save_pretrained")
    refuse(tmp_path, "adapter_config.json")
    (tmp_path / "file").touch()
    refuse(tmp_path / "file", "adapter_config.json")


def test_no_tensors(tmp_path):
    write_adapter(tmp_path)
    (tmp_path / WEIGHTS).unlink()
    refuse(tmp_path, f"no {WEIGHTS}")


def test_a_pickle_is_not_opened(tmp_path):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "trapped",))

    write_adapter(tmp_path)
    (tmp_path / WEIGHTS).unlink()
    (tmp_path / "adapter_model.bin").write_bytes(pickle.dumps({"key": Trap()}))
    refuse(tmp_path, "adapter_model.bin", "pickle", "safetensors", "safe_serialization=True")
    assert not (tmp_path / "trapped").exists()


@pytest.mark.parametrize("content", [b"", b"\x00" * 7, b"not a safetensors file", b"\xff" * 100, pickle.dumps({"key": 1})])
def test_corrupt_tensors(tmp_path, content):
    (write_adapter(tmp_path) / WEIGHTS).write_bytes(content)
    refuse(tmp_path, WEIGHTS, "cannot be read")


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.99])
def test_truncated_tensors(tmp_path, kept):
    path = write_adapter(tmp_path) / WEIGHTS
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    refuse(tmp_path, WEIGHTS, "cannot be read")


@pytest.mark.parametrize("content", [b"", b"{", b'{"r": 2,}', b"\xff\xfe", b"[" * 200_000, b"line\nline", b'{"r": NaN'])
def test_corrupt_configuration(tmp_path, content):
    (write_adapter(tmp_path) / "adapter_config.json").write_bytes(content)
    refuse(tmp_path, "adapter_config.json", "cannot be read")


@pytest.mark.parametrize("content", [[], "LORA", 3, None])
def test_configuration_is_no_object(tmp_path, content):
    (write_adapter(tmp_path) / "adapter_config.json").write_text(json.dumps(content))
    refuse(tmp_path, "adapter_config.json", type(content).__name__)


# ---------------------------------------------------------------- configuration


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"peft_type": "IA3"}, ["peft_type", "'IA3'", "'LORA'", "merge_and_unload"]),
        ({"peft_type": ...}, ["peft_type", "None"]),
        ({"use_dora": True}, ["use_dora", "True", "merge_and_unload"]),
        ({"use_qalora": True}, ["use_qalora"]),
        ({"alora_invocation_tokens": [1, 2]}, ["alora_invocation_tokens", "[1, 2]"]),
        ({"layer_replication": [[0, 4], [2, 6]]}, ["layer_replication"]),
        ({"target_parameters": ["experts.w1"]}, ["target_parameters", "experts.w1"]),
        ({"trainable_token_indices": [1]}, ["trainable_token_indices"]),
        ({"init_lora_weights": "pissa_niter_4"}, ["init_lora_weights", "'pissa_niter_4'", "path_initial_model"]),
        ({"init_lora_weights": "olora"}, ["init_lora_weights", "'olora'"]),
        ({"init_lora_weights": "loftq"}, ["init_lora_weights", "'loftq'"]),
        ({"init_lora_weights": {"pissa": 1}}, ["init_lora_weights"]),
        ({"r": ...}, ["r is not in", "rank 2"]),
        ({"r": None}, ["r in", "None"]),
        ({"r": 0}, ["r in", "0", "1 or more"]),
        ({"r": 2.0}, ["r in", "2.0"]),
        ({"r": True}, ["r in", "True"]),
        ({"lora_alpha": ...}, ["lora_alpha is not in", "default of peft, 8"]),
        ({"lora_alpha": None}, ["lora_alpha", "None"]),
        ({"lora_alpha": "16"}, ["lora_alpha", "'16'", "finite number"]),
        ({"lora_alpha": float("nan")}, ["lora_alpha", "nan"]),
        ({"lora_alpha": float("inf")}, ["lora_alpha", "inf"]),
        ({"use_rslora": "false"}, ["use_rslora", "'false'", "true or false"]),
        ({"fan_in_fan_out": 1}, ["fan_in_fan_out", "1"]),
        ({"rank_pattern": [1]}, ["rank_pattern", "[1]"]),
        ({"rank_pattern": {"q": -1}}, ["rank_pattern['q']", "-1"]),
        ({"rank_pattern": {"(q": 2}}, ["rank_pattern", "'(q'", "regular expression"]),
        ({"alpha_pattern": {"q": None}}, ["alpha_pattern['q']", "None"]),
        ({"r": 4}, ["lora_A.weight", "(2, 5)", "rank 4", "rank_pattern"]),
        ({"rank_pattern": {"1.v": 3}}, [f"{PREFIX}encoder.1.v.lora_A.weight", "(2, 5)", "rank 3"]),
    ],
)
def test_configuration(tmp_path, changes, parts):
    refuse(write_adapter(tmp_path, **changes), *parts)


def test_older_configurations_lack_options(tmp_path):
    lacking = dict.fromkeys(["use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "init_lora_weights", "bias"], ...)
    assert read_adapter(write_adapter(tmp_path, **lacking), base_state()).changed


# ---------------------------------------------------------------- tensors


def test_not_of_this_pretrained_model(tmp_path):
    base = base_state()
    del base["encoder.1.q.weight"]
    refuse_tensors(tmp_path, {}, "encoder.1.q.lora_A.weight", "lacks", "'encoder.", "trained on", base=base)
    base["text.encoder.1.q.weight"] = draw(1, 7, 5)  # the other names need no prefix
    refuse_tensors(tmp_path, {}, "encoder.1.q.lora_A.weight", "lacks", base=base)
    base = {f"{tower}.{name}": value for name, value in base_state().items() for tower in ("text", "vision")}
    refuse_tensors(tmp_path, {}, "'text.encoder.0.q.weight'", "'vision.encoder.0.q.weight'", "rename", base=base)


def test_two_modules_for_one_weight(tmp_path):
    base = {"encoder.0.q.weight": draw(1, 7, 5)}
    tensors = factors("text.encoder.0.q", 7, 5) | factors("vision.encoder.0.q", 7, 5)
    refuse(write_adapter(tmp_path, tensors), "vision.encoder.0.q.lora_A.weight", "lies outside 'text'", base=base)


@pytest.mark.parametrize("gone", ["A", "B"])
def test_missing_partner(tmp_path, gone):
    kept = Q_A if gone == "B" else Q_B
    refuse_tensors(tmp_path, {f"{PREFIX}encoder.0.q.lora_{gone}.weight": None}, kept, f"no lora_{gone}.weight")


def test_missing_partner_of_an_embedding(tmp_path):
    refuse_tensors(tmp_path, {f"{PREFIX}embed.lora_embedding_A": draw(1, 2, 9)}, "embed.lora_embedding_A", "no lora_embedding_B")
    refuse_tensors(tmp_path, {f"{PREFIX}encoder.0.q.lora_B.weight": None, f"{PREFIX}encoder.0.q.lora_B.bias": draw(1, 7)}, Q_A)


PRODUCTS = [((2, 6), (7, 2)), ((2, 5), (8, 2)), ((2, 7), (6, 2)), ((2, 5, 1, 1), (7, 2, 1, 1)), ((2,), (7, 2))]


@pytest.mark.parametrize(("a", "b"), PRODUCTS)
def test_product_does_not_fit(tmp_path, a, b):
    changes = {Q_A: draw(1, *a), Q_B: draw(2, *b)}
    refuse_tensors(tmp_path, changes, repr(Q_A), repr(Q_B), repr(Q), str(a), str(b), str((b[0], *a[1:])), "(7, 5)")


@pytest.mark.parametrize(("a", "b"), [((), ()), ((2, 5), (7,)), ((2, 5), (7, 3)), ((3, 5), (7, 3)), ((0, 5), (7, 0))])
def test_rank_does_not_fit(tmp_path, a, b):
    refuse_tensors(tmp_path, {Q_A: torch.zeros(a), Q_B: torch.zeros(b)}, repr(Q_A), repr(Q_B), str(a), str(b), "rank 2")


def test_embedding_and_convolution_do_not_fit(tmp_path):
    key, base = f"{PREFIX}embed.lora_embedding_", base_state()
    for a, b in (((2, 5), (9, 2)), ((2, 8), (5, 2))):
        refuse_tensors(tmp_path, {key + "A": torch.zeros(a), key + "B": torch.zeros(b)}, "embed.weight", "(9, 5)")
    key = f"{PREFIX}conv.lora_"
    for a, b in (((2, 3, 2, 1), (5, 2, 1, 1)), ((2, 3, 2, 2), (5, 2, 2, 2)), ((2, 3), (5, 2)), ((2, 3, 2), (5, 2, 1))):
        changes = {key + "A.weight": torch.zeros(a), key + "B.weight": torch.zeros(b)}
        refuse_tensors(tmp_path, changes, "conv.weight", "(5, 3, 2, 2)", base=base)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("key", [Q_A, Q_B])
def test_non_finite_values(tmp_path, key, value):
    tensor = linear_tensors()[key].clone()
    tensor[1, 1] = value
    refuse_tensors(tmp_path, {key: tensor}, repr(key), f"1 non-finite of {tensor.numel()} values", read=Q)
    with pytest.raises(fbl.MergeError, match="non-finite"):
        read_adapter(tmp_path, base_state()).factors(Q)


def test_non_finite_replacement(tmp_path):
    key = f"{PREFIX}encoder.0.norm.weight"
    refuse_tensors(tmp_path, {key: torch.full((5,), torch.nan)}, key, "5 non-finite of 5", read="encoder.0.norm.weight")


def test_replacement_of_another_shape(tmp_path):
    key = f"{PREFIX}encoder.0.norm.weight"
    refuse_tensors(tmp_path, {key: draw(1, 6)}, key, "(6,)", "'encoder.0.norm.weight'", "(5,)")
    key = f"{PREFIX}encoder.0.q.lora_B.bias"
    refuse_tensors(tmp_path, {key: draw(1, 6)}, key, "(6,)", "'encoder.0.q.bias'", "(7,)")
    key = f"{PREFIX}encoder.0.v.lora_B.bias"
    refuse_tensors(tmp_path, {key: draw(1, 5)}, key, "'encoder.0.v.bias'", "lacks")


@pytest.mark.parametrize(
    ("key", "parts"),
    [
        ("encoder.0.q.lora_magnitude_vector", ["DoRA", "merge_and_unload"]),
        ("encoder.0.q.lora_magnitude_vector.weight", ["DoRA"]),
        ("encoder.0.q.lora_A.default.weight", ["two tensors of one name", "encoder.0.q.lora_A.weight"]),
        ("encoder.0.q.lora_A.bias", ["no known kind"]),
        ("embed.lora.down.weight", ["diffusers or kohya", "lora_A.weight"]),
        ("embed.lora_up.weight", ["diffusers or kohya"]),
        ("encoder.0.q.lora_A", ["no known kind"]),
        ("embed.token_adapter.trainable_tokens_delta", ["no known kind"]),
        ("attn.base_layer.out_proj.lora_A.weight", ["MultiheadAttention", "merge_and_unload"]),
    ],
)
def test_strange_keys(tmp_path, key, parts):
    refuse_tensors(tmp_path, {PREFIX + key: draw(1, 2, 5)}, repr(PREFIX + key), *parts)


def test_no_lora_at_all(tmp_path):
    refuse(write_adapter(tmp_path, {f"{PREFIX}classifier.weight": draw(1, 3, 5)}), "none of its 1 tensors")
    refuse(write_adapter(tmp_path, {}), "none of its 0 tensors")


def test_integers(tmp_path):
    refuse_tensors(tmp_path, {Q_A: torch.zeros(2, 5, dtype=torch.int8)}, repr(Q_A), "I8", "F32")
    refuse_tensors(tmp_path, {}, repr(Q_A), "torch.int64", base=base_state() | {Q: torch.zeros(7, 5, dtype=torch.int64)})
    with pytest.raises(fbl.MergeError, match=f"pretrained: {Q!r} .* is quantised"):
        read_adapter(write_adapter(tmp_path), base_state() | {Q: torch.zeros(7, 5, dtype=torch.int8)})
