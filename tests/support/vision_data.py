"""Small image datasets in the formats that the real ones come in: the hub's parquet and tar files, folders, archives."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from fusionbench_lite.data.vision import tasks


def picture(label: int, number: int, seed: int = 0, size: tuple[int, int] = (24, 20)) -> np.ndarray:
    """Return an image, uint8 [H, W, 3], whose colours tell its class apart: a coloured gradient with a little noise."""
    rng = np.random.default_rng([seed, label, number])
    colour = np.random.default_rng(label).integers(40, 216, 3)
    slope = np.linspace(-30, 30, size[0])[:, None, None]
    return np.clip(colour + slope + rng.normal(0, 12, (*size, 3)), 0, 255).astype(np.uint8)


def encoded(image: np.ndarray | Image.Image, kind: str = "PNG") -> bytes:
    """Return the bytes of an image file."""
    target = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(target, kind)
    return target.getvalue()


def labels_of(count: int, classes: int, seed: int = 0) -> list[int]:
    """Return labels in which every class occurs about equally often, shuffled."""
    return np.random.default_rng([seed, count]).permutation(np.arange(count) % classes).tolist()


def write_parquet(
    path: Path, images: Sequence[bytes | None], labels: Sequence, names: Sequence[str] | None, *, image: str = "image",
    label: str = "label", boolean: bool = False, row_group: int = 100,
) -> None:
    """Write a parquet file as the datasets library does: image bytes with their path, labels, features in the metadata."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    kind = {"dtype": "bool", "_type": "Value"} if boolean else {"dtype": "int64", "_type": "Value"}
    features = {image: {"_type": "Image"}, label: {"names": list(names), "_type": "ClassLabel"} if names else kind}
    schema = pa.schema(
        [(image, pa.struct([("bytes", pa.binary()), ("path", pa.string())])), (label, pa.bool_() if boolean else pa.int64())],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
    rows = [{"bytes": content, "path": f"{number}.png"} for number, content in enumerate(images)]
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({image: rows, label: list(labels)}, schema=schema), path, row_group_size=row_group)


def write_tar(path: Path, images: Sequence[bytes], labels: Sequence[object], suffix: str = "jpg") -> None:
    """Write a webdataset tar file: KEY.cls and KEY.jpg per example."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for number, (content, label) in enumerate(zip(images, labels, strict=True)):
            for ending, data in (("cls", str(label).encode()), (suffix, content)):
                member = tarfile.TarInfo(f"s{number:07d}.{ending}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))


def write_hub_dataset(
    root: Path, repo: str, sizes: Mapping[str, int], classes: int, seed: int = 0, *, names: Sequence[str] | None = None,
    folder: str = "data", shards: int = 1, boolean: bool = False, image: str = "image", label: str = "label",
) -> Path:
    """Write a dataset repository as the hub serves it below root/repo: `<folder>/<split>-00000-of-0000N.parquet` and a README.

    `sizes` maps splits to numbers of images, `names` are the class names of the feature metadata. Images are made from
    (seed, label, number): at most 40 different ones per class, so that full sizes cost little. Returns the repository's folder.
    """
    place = root / repo
    pool = {(c, k): encoded(picture(c, k, seed)) for c in range(classes) for k in range(min(40, max(1, 2000 // classes)))}
    most = max(number for _, number in pool) + 1
    for number, (split, size) in enumerate(sizes.items()):
        labels = labels_of(size, classes, seed + number)
        images = [pool[c, (row + number) % most] for row, c in enumerate(labels)]
        for shard, rows in enumerate(np.array_split(np.arange(size), shards)):
            write_parquet(
                place / folder / f"{split}-{shard:05d}-of-{shards:05d}.parquet", [images[row] for row in rows],
                [bool(labels[row]) if boolean else labels[row] for row in rows], names, boolean=boolean, image=image, label=label,
            )
    (place / "README.md").parent.mkdir(parents=True, exist_ok=True)
    (place / "README.md").write_text("---\nlicense: unknown\n---\n")
    return place


def write_hub_task(
    root: Path, task: str, variant: str = "tall", sizes: Mapping[str, int] | None = None, seed: int = 0, shards: int = 1
) -> Path:
    """Write the dataset repository of a task under its true name, layout and columns, with its true sizes by default."""
    known = tasks.task(task, variant)
    assert known.hub is not None
    source = known.hub
    sizes = sizes or {"train": known.train, "test": known.test}
    named = {{"train": source.train, "test": source.test}.get(split, split): size for split, size in sizes.items()}
    if source.format == "tar":
        for split, size in named.items():
            labels = labels_of(size, known.classes, seed)
            images = [encoded(picture(c, row % 10, seed), "JPEG") for row, c in enumerate(labels)]
            write_tar(root / source.repo / split / "0.tar", images, labels)
        return root / source.repo
    return write_hub_dataset(
        root, source.repo, named, known.classes, seed, folder=source.folder, shards=shards, boolean=source.boolean,
        image=source.image, label=source.label,
    )


def write_folder(root: Path, task: str, names: Sequence[str], sizes: Mapping[str, int], kind: str = "PNG") -> Path:
    """Write root/task/SPLIT/CLASS/NUMBER.png, `sizes` images per class; returns root/task."""
    for split, size in sizes.items():
        for label, name in enumerate(names):
            (root / task / split / name).mkdir(parents=True, exist_ok=True)
            for number in range(size):
                content = encoded(picture(label, number + (split == "train") * 1000), kind)
                (root / task / split / name / f"{number:04d}.{kind.lower()}").write_bytes(content)
    return root / task


def write_npz(root: Path, task: str, names: Sequence[str], sizes: Mapping[str, int], size: tuple[int, int] = (24, 20)) -> None:
    """Write root/task.npz and root/task.json with images of any size."""
    root.mkdir(parents=True, exist_ok=True)
    arrays = {}
    for split, count in sizes.items():
        labels = np.array(labels_of(count, len(names)))
        arrays[f"{split}_images"] = np.stack([picture(c, row, 1, size) for row, c in enumerate(labels)])
        arrays[f"{split}_labels"] = labels
    np.savez(root / f"{task}.npz", **arrays)
    (root / f"{task}.json").write_text(json.dumps({"classes": list(names)}))


class LocalHub:
    """A stand-in for fusionbench_lite.hub whose repositories are folders; `fetched` lists what was asked for."""

    def __init__(self, root: Path) -> None:
        self.root, self.fetched = root, []

    def tree(self, repo, *, kind="model", revision="main", under="", cache):
        from fusionbench_lite.errors import InputError
        from fusionbench_lite.hub import Entry
        from fusionbench_lite.paths import file_sha256

        if not (self.root / repo).is_dir():
            raise InputError(f"dataset {repo}: no such repository; check the name")
        files = sorted(path for path in (self.root / repo).rglob("*") if path.is_file())
        return [Entry(path.relative_to(self.root / repo).as_posix(), path.stat().st_size, file_sha256(path)) for path in files]

    def fetch(self, repo, file, *, kind="model", revision="main", cache, sha256=None, size=None, report=None):
        from fusionbench_lite.hub import Fetched
        from fusionbench_lite.paths import file_sha256

        assert kind == "dataset"
        self.fetched.append(f"{repo}:{file}")
        path = self.root / repo / file
        return Fetched(path=path, sha256=file_sha256(path), commit="c" * 40, repo=repo, file=file)

    def present(self, repo, file, *, kind="model", revision="main", cache, sha256=None, size=None):
        return None

    def arrived(self, repo, file, *, kind="model", revision="main", cache, sha256):
        return 0


def small_tasks(path: Path, sizes: Mapping[str, tuple[int, int]]) -> Path:
    """Write a table of tasks in which these tasks have (train, test) images; everything else is as in the packaged one."""
    import yaml

    table = yaml.safe_load((Path(tasks.__file__).parent / "tasks.yaml").read_text(encoding="utf-8"))
    for task, (train, test) in sizes.items():
        for entry in (table[task], *(table[task][variant] for variant in tasks.VARIANTS if variant in table[task])):
            if "train" in entry or entry is table[task]:
                entry |= {"train": train, "test": test}
    path.write_text(yaml.safe_dump(table, sort_keys=False), encoding="utf-8")
    return path
