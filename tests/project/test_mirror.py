"""The local mirror: what it says on the wire, and that the Hugging Face libraries work against it."""

from __future__ import annotations

import hashlib
import http.client
import io
import json
import subprocess
import sys
import urllib.parse
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.support.mirror import Mirror, subprocess_environment
from tests.support.mirror import mirror as mirror

CONTENT = bytes(range(256)) * 400
SHA256 = hashlib.sha256(CONTENT).hexdigest()
RESOLVE = "/lab/clip/resolve/main/model.safetensors"


def ask(served: Mirror, path: str, method: str = "GET", body: bytes = b"", **headers: str) -> tuple[int, dict[str, str], bytes]:
    """Make one request and return status, headers and content."""
    connection = http.client.HTTPConnection("127.0.0.1", int(served.url.rpartition(":")[2]), timeout=5)
    connection.request(method, path, body or None, headers)
    answer = connection.getresponse()
    found = answer.status, {key.lower(): value for key, value in answer.getheaders()}, answer.read()
    connection.close()
    return found


@pytest.fixture
def filled(mirror: Mirror) -> Mirror:
    mirror.put("model", "lab/clip", "model.safetensors", CONTENT)
    mirror.put("model", "lab/clip", "config.json", b"{}")
    for path in ("README.md", "data/a.parquet", "data/deep/b.parquet"):
        mirror.put("dataset", "lab/dtd", path, path.encode())
    return mirror


def test_a_file_has_the_headers_of_a_hub(filled: Mirror) -> None:
    commit = filled.commit("model", "lab/clip")
    status, headers, body = ask(filled, RESOLVE)
    assert (status, body) == (200, CONTENT)
    assert headers["etag"] == headers["x-linked-etag"] == f'"{SHA256}"'
    assert headers["x-repo-commit"] == commit
    assert headers["content-length"] == headers["x-linked-size"] == str(len(CONTENT))
    assert headers["accept-ranges"] == "bytes"
    assert ask(filled, RESOLVE, "HEAD")[::2] == (200, b"")
    assert ask(filled, RESOLVE.replace("main", commit))[0] == 200
    small = ask(filled, "/lab/clip/resolve/main/config.json")[1]
    assert small["etag"] == '"' + hashlib.sha1(b"blob 2\0{}").hexdigest() + '"'
    assert "x-linked-etag" not in small


@pytest.mark.parametrize(
    ("asked", "first", "last"), [("bytes=10-19", 10, 19), ("bytes=100-", 100, 102399), ("bytes=102390-999999", 102390, 102399)]
)
def test_a_range_is_served(asked: str, first: int, last: int, filled: Mirror) -> None:
    status, headers, body = ask(filled, RESOLVE, Range=asked)
    assert (status, body) == (206, CONTENT[first : last + 1])
    assert headers["content-range"] == f"bytes {first}-{last}/{len(CONTENT)}"
    assert ask(filled, RESOLVE, Range="bytes=102400-")[0] == 416


@pytest.mark.parametrize(
    ("path", "code"),
    [("/lab/clip/resolve/main/none", "EntryNotFound"), ("/lab/clip/resolve/v2/config.json", "RevisionNotFound"),
     ("/lab/none/resolve/main/config.json", "RepoNotFound"), ("/api/datasets/lab/dtd/tree/main/none", "EntryNotFound"),
     ("/api/datasets/lab/none/revision/main", "RepoNotFound"), ("/api/agent-harnesses", None)],
)  # fmt: skip
def test_what_is_not_there_is_404(path: str, code: str | None, filled: Mirror) -> None:
    status, headers, _ = ask(filled, path)
    assert (status, headers.get("x-error-code")) == (404, code)


def test_lists_of_files(filled: Mirror) -> None:
    commit = filled.commit("dataset", "lab/dtd")

    def listed(rest: str) -> list[str]:
        rows = json.loads(ask(filled, f"/api/datasets/lab/dtd/tree/{rest}")[2])
        return [row["path"] + ("/" if row["type"] == "directory" else "") for row in rows]

    assert listed("main") == ["data/", "README.md"]
    assert listed("main/data?recursive=false") == ["data/deep/", "data/a.parquet"]
    assert listed(f"{commit}?recursive=true") == ["data/", "data/deep/", "README.md", "data/a.parquet", "data/deep/b.parquet"]
    filled.page = 2
    status, headers, body = ask(filled, "/api/datasets/lab/dtd/tree/main?recursive=True")
    assert (status, len(json.loads(body))) == (200, 2)
    following = headers["link"].partition(">")[0].lstrip("<").removeprefix(filled.url)
    assert "cursor=2" in following
    assert len(json.loads(ask(filled, following)[2])) == 2


def test_what_else_the_api_says(filled: Mirror) -> None:
    commit = filled.commit("dataset", "lab/dtd")
    about = json.loads(ask(filled, "/api/datasets/lab/dtd/revision/main")[2])
    assert about["sha"] == commit
    assert {"rfilename": "data/a.parquet"} in about["siblings"]
    assert json.loads(ask(filled, "/api/datasets/lab/dtd")[2])["sha"] == commit
    assert json.loads(ask(filled, "/api/datasets/lab/dtd/refs")[2])["branches"][0]["targetCommit"] == commit
    for body in (json.dumps({"paths": ["README.md"]}).encode(), urllib.parse.urlencode({"paths": "README.md"}).encode()):
        rows = json.loads(ask(filled, "/api/datasets/lab/dtd/paths-info/main", "POST", body)[2])
        assert [(row["path"], row["size"]) for row in rows] == [("README.md", 9)]


def test_the_commit_follows_the_content(filled: Mirror) -> None:
    before = filled.commit("model", "lab/clip")
    assert filled.commit("model", "lab/clip") == before
    filled.put("model", "lab/clip", "config.json", b"[]")
    assert filled.commit("model", "lab/clip") != before


def test_faults_meet_as_many_requests_as_they_are_for(filled: Mirror) -> None:
    filled.inject("busy", "*/config.json", times=2, retry_after="3")
    assert ask(filled, RESOLVE)[0] == 200
    assert [ask(filled, "/lab/clip/resolve/main/config.json")[0] for _ in range(3)] == [429, 429, 200]
    filled.inject("flipped", at=7)
    spoiled = ask(filled, RESOLVE)[2]
    assert [place for place in range(len(CONTENT)) if spoiled[place] != CONTENT[place]] == [7]
    filled.inject("truncated", at=5)
    with pytest.raises(http.client.IncompleteRead):
        ask(filled, RESOLVE)
    assert filled.asked(RESOLVE)[-1].sent == 5
    for kind in ("reset", "drop"):
        filled.inject(kind)
        with pytest.raises(ConnectionResetError):
            ask(filled, RESOLVE)


def run(served: Mirror, home: Path, code: str) -> str:
    environment = subprocess_environment(served, home, OMP_NUM_THREADS="1")
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize("storage", [False, True])
def test_huggingface_hub_downloads_a_file_and_a_snapshot(storage: bool, filled: Mirror, tmp_path: Path) -> None:
    filled.storage = storage
    code = """
import huggingface_hub
path = huggingface_hub.hf_hub_download("lab/clip", "model.safetensors")
print(len(open(path, "rb").read()))
folder = huggingface_hub.snapshot_download("lab/dtd", repo_type="dataset")
print(open(folder + "/data/deep/b.parquet").read())
"""
    assert run(filled, tmp_path / "home", code).split() == ["102400", "data/deep/b.parquet"]


@pytest.mark.slow
def test_transformers_and_peft_load_from_it(mirror: Mirror, tmp_path: Path) -> None:
    make = f"""
import fusionbench_lite.base.torchvision_ops, transformers, peft, torch
sizes = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
text = transformers.CLIPTextConfig(**sizes, vocab_size=20)
vision = transformers.CLIPVisionConfig(**sizes, image_size=32, patch_size=16)
config = transformers.CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=8)
model = transformers.CLIPModel(config)
model.save_pretrained({str(mirror.root / "models" / "lab" / "tiny")!r})
torch.save(model.state_dict()["visual_projection.weight"].double().sum(), {str(tmp_path / "sum.pt")!r})
adapter = peft.get_peft_model(model.vision_model, peft.LoraConfig(target_modules=["q_proj"], r=2))
adapter.save_pretrained({str(mirror.root / "models" / "lab" / "adapter")!r})
"""
    load = f"""
import fusionbench_lite.base.torchvision_ops, transformers, peft, torch
model = transformers.CLIPModel.from_pretrained("lab/tiny")
assert model.visual_projection.weight.double().sum() == torch.load({str(tmp_path / "sum.pt")!r})
peft.PeftModel.from_pretrained(model.vision_model, "lab/adapter")
print("loaded")
"""
    run(mirror, tmp_path / "home", make)
    assert run(mirror, tmp_path / "home", load).split()[-1] == "loaded"
    assert mirror.asked("/lab/tiny/resolve/*/model.safetensors", "GET")
    assert mirror.asked("/lab/adapter/resolve/*/adapter_model.safetensors", "GET")


def test_datasets_load_parquet_from_it(mirror: Mirror, tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    for split, rows in (("train", 3), ("test", 2)):
        file = io.BytesIO()
        pyarrow.parquet.write_table(pyarrow.table({"label": list(range(rows))}), file)
        mirror.put("dataset", "lab/dtd", f"data/{split}-00000-of-00001.parquet", file.getvalue())
    code = """
import datasets
print(datasets.load_dataset("lab/dtd", split="test")["label"][:])
"""
    assert run(mirror, tmp_path / "home", code).strip() == "[0, 1]"
    assert mirror.asked("/datasets/lab/dtd/resolve/*/data/*.parquet", "GET")
