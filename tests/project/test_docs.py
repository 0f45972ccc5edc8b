"""What people read: links lead somewhere, modules and files that are named exist, and the picture of the layers is the contract."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from tests.conftest import ROOT

PACKAGE = ROOT / "fusionbench_lite"
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
SOURCES = sorted(
    path for folder in ("fusionbench_lite", "tests", "docs", "conf", "experiments", "benchmarks")
    for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".md", ".yaml")
)


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_lead_somewhere(page: Path):
    for link in re.findall(r"(?<!\\)\]\(([^)\s]+)\)", page.read_text()):
        if link.startswith(("http://", "https://")):
            continue
        target, _, section = link.partition("#")
        found = (page.parent / target).resolve() if target else page
        assert found.exists(), link
        assert not section or section in anchors(found), link


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_commands_that_are_named_exist(page: Path):
    for name in set(re.findall(r"python -m (fusionbench_lite[\w.]*)", page.read_text())):
        path = ROOT.joinpath(*name.rstrip(".").split("."))
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), name
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:`|^ {4})make ([a-z][a-z-]+)", page.read_text(), re.MULTILINE)) <= targets


@pytest.mark.parametrize("page", ["docs/architecture.md", "docs/decisions.md", "CONTRIBUTING.md", "README.md"])
def test_files_that_are_named_exist(page: str):
    names = {path.name for path in SOURCES}
    for name in re.findall(r"`([\w/.]+(?:\.py|\.yaml|/))`", (ROOT / page).read_text()):
        found = any((root / name).exists() for root in (ROOT, PACKAGE))
        assert found or name.startswith("results/") or ("/" not in name and name in names), name


def test_decisions_are_numbered_and_those_that_are_cited_exist():
    headings = re.findall(r"^### D(\d+) ", (ROOT / "docs" / "decisions.md").read_text(), re.MULTILINE)
    assert headings == [str(number) for number in range(1, len(headings) + 1)]
    cited = [number for path in SOURCES for number in re.findall(r"decisions\.md,\s+D(\d+)\b", path.read_text())]
    assert len(cited) > 30
    assert set(cited) <= set(headings)


def test_pages_that_sources_cite_exist():
    for path in SOURCES:
        for page in re.findall(r"(?<![\w/.])docs/[\w/]+\.md\b", path.read_text()):
            assert (ROOT / page).is_file(), f"{named(path)} cites {page}"


def test_the_picture_of_the_layers_is_the_contract():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    layers = next(contract["layers"] for contract in settings["contracts"] if contract["type"] == "layers")
    picture = (ROOT / "docs" / "architecture.md").read_text().split("```")[1].strip().splitlines()
    drawn = [re.split(r" {2,}", line)[0].split(", ") for line in picture]
    assert [set(names) for names in drawn] == [set(layer.split(" | ")) for layer in layers]
