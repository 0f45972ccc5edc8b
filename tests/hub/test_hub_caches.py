"""Downloads: caches, commits, offline use, tokens, lists of files, and processes that share a cache or are killed."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from fusionbench_lite import hub
from fusionbench_lite.errors import InputError
from tests.hub.test_hub import CONTENT, FILE, REPO, SHA256, refused, visible
from tests.hub.test_hub import cache as cache
from tests.hub.test_hub import filled as filled
from tests.hub.test_hub import impatient as impatient
from tests.support.mirror import Mirror
from tests.support.mirror import mirror as mirror


def users_cache() -> Path:
    return Path(os.environ["HF_HOME"]) / "hub"


def put_into_users_cache(content: bytes, name: str, links: bool = True, commit: str = "a" * 40) -> Path:
    """Lay a file into the user's cache as huggingface_hub does."""
    folder = users_cache() / "models--lab--clip"
    path = folder / "snapshots" / commit / FILE
    for parent in (folder / "refs", folder / "blobs", path.parent):
        parent.mkdir(parents=True, exist_ok=True)
    (folder / "refs" / "main").write_text(commit)
    if links:
        (folder / "blobs" / name).write_bytes(content)
        path.symlink_to(os.path.relpath(folder / "blobs" / name, path.parent))
    else:
        path.write_bytes(content)
    return path


@pytest.mark.parametrize("links", [True, False])
def test_the_users_own_cache_is_used_in_place(links: bool, filled: Mirror, cache: Path) -> None:
    path = put_into_users_cache(CONTENT, SHA256, links)
    found = hub.fetch(REPO, FILE, cache=cache, sha256=SHA256)
    assert (found.path, found.commit, found.sha256) == (path, "a" * 40, SHA256)
    assert filled.asked() == []
    assert visible(cache) == []


@pytest.mark.parametrize("links", [True, False])
def test_damage_in_the_users_own_cache_is_noticed_and_left_alone(links: bool, filled: Mirror, cache: Path) -> None:
    damaged = CONTENT[:-1] + b"x"
    path = put_into_users_cache(damaged, SHA256, links)
    found = hub.fetch(REPO, FILE, cache=cache, sha256=None if links else SHA256)
    assert found.path.read_bytes() == CONTENT
    assert found.path.is_relative_to(cache)
    assert path.read_bytes() == damaged


@pytest.mark.parametrize("variable", ["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"])
def test_the_users_cache_may_be_elsewhere(
    variable: str, filled: Mirror, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_into_users_cache(CONTENT, SHA256)
    users_cache().rename(tmp_path / "elsewhere")
    assert hub.present(REPO, FILE, cache=cache) is None
    monkeypatch.setenv(variable, str(tmp_path / "elsewhere"))
    found = hub.present(REPO, FILE, cache=cache)
    assert found is not None
    assert found.path.is_relative_to(tmp_path / "elsewhere")


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", None])
def test_a_full_cache_needs_no_network(variable: str | None, filled: Mirror, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = hub.tree("lab/dtd", kind="dataset", under="data", cache=cache)
    files = [hub.fetch("lab/dtd", one.path, kind="dataset", cache=cache, sha256=one.sha256, size=one.size) for one in listed]
    model = hub.fetch(REPO, FILE, cache=cache)
    filled.log.clear()
    filled.close()
    if variable:
        monkeypatch.setenv(variable, "1")
    assert hub.tree("lab/dtd", kind="dataset", under="data", cache=cache) == listed
    assert [hub.fetch("lab/dtd", entry.path, kind="dataset", cache=cache) for entry in listed] == files
    assert hub.fetch(REPO, FILE, cache=cache) == model
    assert filled.asked() == []


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_offline_an_incomplete_cache_is_named(variable: str, filled: Mirror, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "1")
    line = refused(filled, cache)
    assert "HF_HUB_OFFLINE" in line
    assert str(cache) in line
    with pytest.raises(InputError, match="the file list of dataset lab/dtd is neither in"):
        hub.tree("lab/dtd", kind="dataset", cache=cache)
    assert filled.asked() == []


def test_a_dead_network_is_named(filled: Mirror, cache: Path) -> None:
    filled.close()
    line = refused(filled, cache)
    assert "cannot be reached" in line
    assert "tried 5 times" in line


def test_a_branch_stays_at_its_commit_until_a_file_is_missing_there(filled: Mirror, cache: Path) -> None:
    old = hub.fetch(REPO, FILE, cache=cache)
    filled.put("model", REPO, "new.json", b"{}")
    assert hub.fetch(REPO, FILE, cache=cache) == old
    new = hub.fetch(REPO, "new.json", cache=cache)
    assert new.commit == filled.commit("model", REPO) != old.commit
    assert hub.fetch(REPO, FILE, cache=cache) == old


def test_content_that_a_later_commit_shares_is_not_sent_again(filled: Mirror, cache: Path) -> None:
    old = hub.fetch(REPO, FILE, cache=cache)
    filled.put("model", REPO, "new.json", b"{}")
    commit = filled.commit("model", REPO)
    new = hub.fetch(REPO, FILE, revision=commit, cache=cache)
    assert new.commit == commit != old.commit
    assert new.path != old.path
    assert len(filled.asked(method="GET")) == 1


def test_a_replaced_file_is_fetched_when_it_is_the_wanted_one(filled: Mirror, cache: Path) -> None:
    hub.fetch(REPO, FILE, cache=cache)
    filled.put("model", REPO, FILE, CONTENT[::-1])
    wanted = hashlib.sha256(CONTENT[::-1]).hexdigest()
    assert hub.fetch(REPO, FILE, cache=cache, sha256=wanted).path.read_bytes() == CONTENT[::-1]
    assert hub.fetch(REPO, FILE, cache=cache, sha256=SHA256).path.read_bytes() == CONTENT


def test_a_gated_repository_opens_with_its_token(filled: Mirror, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled.tokens[REPO] = "hf_secret"
    assert "no token was sent" in refused(filled, cache)
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    line = refused(filled, cache)
    assert "the token in use was refused" in line
    assert "hf_other" not in line
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert hub.fetch(REPO, FILE, cache=cache).sha256 == SHA256


@pytest.mark.parametrize("way", ["storage", "HEAD", "GET"])
def test_the_token_goes_to_no_other_host(way: str, filled: Mirror, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    if way == "storage":
        filled.storage = True
    else:
        filled.inject("redirect", "*.safetensors", method=way)
    assert hub.fetch(REPO, FILE, cache=cache).sha256 == SHA256
    there = [one for one in filled.log if one.server == "storage"]
    here = [one for one in filled.log if one.server == "hub"]
    assert there
    assert all("authorization" not in one.headers for one in there)
    assert all(one.headers["authorization"] == "Bearer hf_secret" for one in here)


def test_a_storage_host_may_break_off_and_its_addresses_may_expire(filled: Mirror, cache: Path) -> None:
    filled.storage = True
    filled.inject("truncated", "/storage/*")
    filled.inject("expired", "/storage/*")
    assert hub.fetch(REPO, FILE, cache=cache).path.read_bytes() == CONTENT
    assert [one.status for one in filled.asked("/storage/*")] == [200, 403, 206]


def test_a_slip_in_a_name_is_met_with_the_nearest_file(filled: Mirror, cache: Path) -> None:
    assert "did you mean 'weights/model.safetensors'?" in refused(filled, cache, file="weights/modell.safetensors")


def test_a_list_has_every_page_and_is_kept(filled: Mirror, cache: Path) -> None:
    filled.page = 3
    for number in range(10):
        filled.put("dataset", "lab/dtd", f"data/train-{number}.parquet", b"%d" % number)
    entries = hub.tree("lab/dtd", kind="dataset", cache=cache)
    assert [entry.path for entry in entries] == sorted(filled.files("dataset", "lab/dtd") or {})
    assert entries[1] == hub.Entry("data/train-0.parquet", 1, hashlib.sha256(b"0").hexdigest())
    requests = len(filled.asked())
    assert hub.tree("lab/dtd", kind="dataset", under="data", cache=cache) == entries
    assert len(filled.asked()) == requests


@pytest.mark.parametrize("old", [True, False])
@pytest.mark.parametrize("damage", ["p", "digit", "size", "path", "row", "not JSON"])
def test_a_stored_list_that_was_damaged_is_asked_for_again(damage: str, old: bool, filled: Mirror, cache: Path) -> None:
    entries = hub.tree("lab/dtd", kind="dataset", cache=cache)
    (path,) = (cache / "hub").rglob("listings/*/.all.json")
    sound = path.read_text()
    content = json.loads(sound)
    if old:  # as earlier versions stored it: without a checksum
        content = content["files"]
        path.write_text(json.dumps(content))
        requests = len(filled.asked())
        assert hub.tree("lab/dtd", kind="dataset", cache=cache) == entries
        assert len(filled.asked()) == requests
    row = (content if old else content["files"])[0]
    before = json.dumps(row)
    if damage in ("p", "digit"):
        other = "p" if damage == "p" else format(int(row[2][5], 16) ^ 1, "x")
        row[2] = row[2][:5] + other + row[2][6:]
    row[0], row[1] = {"path": "../" + row[0]}.get(damage, row[0]), {"size": -row[1] - 1}.get(damage, row[1])
    if damage == "row":
        row.append("more")
    text = json.dumps(content)
    assert (json.dumps(row) == before) == (damage == "not JSON")
    path.write_text(text.replace("[", "(") if damage == "not JSON" else text)
    found = hub.tree("lab/dtd", kind="dataset", cache=cache)
    if old and damage == "digit":  # nothing tells it from a sound one
        assert found != entries
        return
    assert found == entries
    assert path.read_text() == sound


def test_files_are_fetched_at_the_commit_of_their_list(filled: Mirror, cache: Path) -> None:
    entry = hub.tree("lab/dtd", kind="dataset", cache=cache)[0]
    listed_at = filled.commit("dataset", "lab/dtd")
    found = hub.fetch("lab/dtd", entry.path, kind="dataset", cache=cache, sha256=entry.sha256)
    assert found.commit == listed_at
    assert filled.asked(f"*/resolve/{listed_at}/*")


def test_a_list_that_cannot_be_had(filled: Mirror, cache: Path) -> None:
    for options, words in (({"under": "nodata"}, "has no such folder"), ({"revision": "v9"}, "no revision v9")):
        with pytest.raises(InputError, match=words) as caught:
            hub.tree("lab/dtd", kind="dataset", cache=cache, **options)
        assert "lab/dtd" in str(caught.value)
    for kind in ("error", "login", "gated"):
        filled.inject(kind, "/api/*", times=1000)
        with pytest.raises(InputError, match="cannot list the file list of dataset lab/dtd|cannot list data of dataset lab/dtd"):
            hub.tree("lab/dtd", kind="dataset", cache=cache)
        filled.heal()
    filled.inject("busy", "/api/*", times=2)
    assert len(hub.tree("lab/dtd", kind="dataset", cache=cache)) == 1


def test_without_network_and_list_the_users_files_are_listed(filled: Mirror, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_into_users_cache(CONTENT, SHA256)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert hub.tree(REPO, cache=cache) == [hub.Entry(FILE, len(CONTENT), SHA256)]
    assert hub.tree(REPO, under="weights", cache=cache) == [hub.Entry(FILE, len(CONTENT), SHA256)]
