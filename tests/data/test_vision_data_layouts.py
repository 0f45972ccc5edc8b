"""Image tasks from published archives below data_dir, read by torchvision or by the lists that came with them."""

from __future__ import annotations

import csv
import dataclasses
import gzip
import json
import pickle
import struct
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from fusionbench_lite.data import vision
from fusionbench_lite.data.vision import decoding, folders, tasks
from fusionbench_lite.errors import InputError
from fusionbench_lite.models import text_heads
from tests.support.vision_data import encoded, labels_of, picture, small_tasks

SIZE = 32
TRAIN, TEST = 1, 0


def image(label: int, number: int, split: int, size=(24, 20)) -> np.ndarray:
    return picture(label, number + 1000 * split, 0, size)


def put(path: Path, content: np.ndarray, kind: str = "PNG") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(content, kind))


def sets(classes: int, each: tuple[int, int] = (2, 1)) -> list[tuple[str, list[int]]]:
    return [("train", labels_of(each[0] * classes, classes, 1)), ("test", labels_of(each[1] * classes, classes, 2))]


# ---------------------------------------------------------------- writers: each returns labels of train and test


def idx(array: np.ndarray) -> bytes:
    return struct.pack(">BBBB", 0, 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def grey(label: int, number: int, split: int) -> np.ndarray:
    return image(label, number, split, (28, 28))[..., 0]


def write_idx(folder: Path, prefix: str, ending: str, classes: int, first: int = 0):
    folder.mkdir(parents=True)
    names = {"train": "train", "test": "t10k"} if not prefix else {"train": f"{prefix}-train", "test": f"{prefix}-test"}
    for split, labels in sets(classes):
        images = np.stack([grey(c, row, split == "train") for row, c in enumerate(labels)])
        (folder / f"{names[split]}-images{ending}3-ubyte").write_bytes(idx(images))
        (folder / f"{names[split]}-labels{ending}1-ubyte").write_bytes(idx(np.array(labels, np.uint8) + first))


def mnist(root):
    write_idx(root / "MNIST/raw", "", "-idx", 10)


def fashion_mnist(root):
    write_idx(root / "FashionMNIST/raw", "", "-idx", 10)


def kmnist(root):
    write_idx(root / "KMNIST/raw", "", "-idx", 10)


def emnist(root):
    write_idx(root / "EMNIST/raw", "emnist-digits", "-idx", 10)


def emnist_letters(root):
    write_idx(root / "EMNIST/raw", "emnist-letters", "-idx", 26, first=1)


def svhn(root):
    root.mkdir(parents=True)
    for split, labels in sets(10):
        images = np.stack([image(c, row, split == "train", (32, 32)) for row, c in enumerate(labels)], -1)
        savemat(root / f"{split}_32x32.mat", {"X": images, "y": np.array([c or 10 for c in labels])[:, None]})


def cifar(root, folder, batches, key, names):
    (root / folder).mkdir(parents=True)
    for split, labels in sets(len(names)):
        images = np.stack([image(c, row, split == "train", (32, 32)) for row, c in enumerate(labels)])
        files = batches if split == "train" else [{5: "test_batch", 1: "test"}[len(batches)]]
        for name, rows in zip(files, np.array_split(np.arange(len(labels)), len(files)), strict=True):
            content = {"data": images[rows].transpose(0, 3, 1, 2).reshape(len(rows), -1), key: [labels[row] for row in rows]}
            (root / folder / name).write_bytes(pickle.dumps(content))


def cifar10(root):
    names = folders.class_names(tasks.task("cifar10", "tall"))[0]
    cifar(root, "cifar-10-batches-py", [f"data_batch_{n}" for n in range(1, 6)], "labels", names)
    (root / "cifar-10-batches-py/batches.meta").write_bytes(pickle.dumps({"label_names": list(names)}))


def cifar100(root):
    names = folders.class_names(tasks.task("cifar100", "tall"))[0]
    cifar(root, "cifar-100-python", ["train"], "fine_labels", names)
    (root / "cifar-100-python/meta").write_bytes(pickle.dumps({"fine_label_names": list(names)}))


def stl10(root):
    (root / "stl10_binary").mkdir(parents=True)
    for split, labels in sets(10):
        images = np.stack([image(c, row, split == "train", (96, 96)) for row, c in enumerate(labels)])
        (root / f"stl10_binary/{split}_X.bin").write_bytes(images.transpose(0, 3, 2, 1).tobytes())
        (root / f"stl10_binary/{split}_y.bin").write_bytes(bytes(c + 1 for c in labels))
    (root / "stl10_binary/unlabeled_X.bin").write_bytes(b"")
    (root / "stl10_binary/class_names.txt").write_text("\n".join(folders.class_names(tasks.task("stl10", "tall"))[0]))


def dtd(root):
    names = folders.class_names(tasks.task("dtd", "tall"))[0]
    for split, labels in sets(47):
        for row, c in enumerate(labels):
            put(root / f"dtd/dtd/images/{names[c]}/{names[c]}_{split}{row:04d}.jpg", image(c, row, split == "train"))
        lines = [f"{names[c]}/{names[c]}_{split}{row:04d}.jpg\n" for row, c in enumerate(labels)]
        (root / "dtd/dtd/labels").mkdir(exist_ok=True)
        if split == "test":
            (root / "dtd/dtd/labels/test1.txt").write_text("".join(lines))
            continue
        seen: set[str] = set()
        first = [line for line in lines if not (line.split("/")[0] in seen or seen.add(line.split("/")[0]))]
        (root / "dtd/dtd/labels/train1.txt").write_text("".join(first))
        (root / "dtd/dtd/labels/val1.txt").write_text("".join(line for line in lines if line not in first))


def gtsrb(root):
    rows = [("Filename", "ClassId")]
    for split, labels in sets(43):
        for row, c in enumerate(labels):
            name = f"Final_Test/Images/{row:05d}.ppm" if split == "test" else f"Training/{c:05d}/00000_{row:05d}.ppm"
            put(root / "gtsrb/GTSRB" / name, image(c, row, split == "train"), "PPM")
            rows += [(f"{row:05d}.ppm", c)] if split == "test" else []
    with (root / "gtsrb/GT-final_test.csv").open("w", newline="") as file:
        csv.writer(file, delimiter=";").writerows(rows)


def flowers102(root):
    labels, ids = [], {"train": [], "test": []}
    for split, wanted in sets(102):
        for row, c in enumerate(wanted):
            labels.append(c + 1)
            ids[split].append(len(labels))
            put(root / f"flowers-102/jpg/image_{len(labels):05d}.jpg", image(c, row, split == "train"))
    savemat(root / "flowers-102/imagelabels.mat", {"labels": np.array(labels)[None]})
    parts = {"trnid": np.array(ids["train"]), "tstid": np.array(ids["test"]), "valid": np.array([1])}
    savemat(root / "flowers-102/setid.mat", parts)


def stanford_cars(root):
    for split, labels in sets(196):
        for row, c in enumerate(labels):
            put(root / f"stanford_cars/cars_{split}/{row:05d}.jpg", image(c, row, split == "train"))
        kind = [("bbox_x1", int), ("class", int), ("fname", object)]
        marks = np.array([(3, c + 1, f"{row:05d}.jpg") for row, c in enumerate(labels)], dtype=kind)
        (root / "stanford_cars/devkit").mkdir(exist_ok=True)
        name = "devkit/cars_train_annos.mat" if split == "train" else "cars_test_annos_withlabels.mat"
        savemat(root / "stanford_cars" / name, {"annotations": marks[None]})
    names = np.array(folders.class_names(tasks.task("stanford_cars", "tall"))[0], dtype=object)
    savemat(root / "stanford_cars/devkit/cars_meta.mat", {"class_names": names[None]})


def oxford_iiit_pet(root):
    names = [name.replace(" ", "_") for name in folders.class_names(tasks.task("oxford_iiit_pet", "tall"))[0]]
    for split, labels in sets(37):
        lines = []
        for row, c in enumerate(labels):
            put(root / f"oxford-iiit-pet/images/{names[c]}_{split}{row}.jpg", image(c, row, split == "train"))
            lines.append(f"{names[c]}_{split}{row} {c + 1} 1 1\n")
        (root / "oxford-iiit-pet/annotations").mkdir(exist_ok=True)
        (root / f"oxford-iiit-pet/annotations/{ {'train': 'trainval'}.get(split, split) }.txt").write_text("".join(lines))


def food101(root):
    names = folders.class_names(tasks.task("food101", "tall"))[0]
    for split, labels in sets(101):
        listed: dict[str, list[str]] = {name: [] for name in names}
        for row, c in enumerate(labels):
            put(root / f"food-101/images/{names[c]}/{split}{row}.jpg", image(c, row, split == "train"))
            listed[names[c]].append(f"{names[c]}/{split}{row}")
        (root / "food-101/meta").mkdir(exist_ok=True)
        (root / f"food-101/meta/{split}.json").write_text(json.dumps(listed))


def rendered_sst2(root):
    for split, labels in sets(2):
        for row, c in enumerate(labels):
            put(root / f"rendered-sst2/{split}/{('negative', 'positive')[c]}/{row}.png", image(c, row, split == "train"))


def fer2013(root):
    (root / "fer2013").mkdir(parents=True)
    numbers = [0, 1, 2, 3, 6, 4, 5]  # of the alphabetical names in the file's own order
    with (root / "fer2013/fer2013.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("emotion", "pixels", "Usage"))
        for split, labels in sets(7):
            for row, c in enumerate(labels):
                pixels = " ".join(map(str, image(c, row, split == "train", (48, 48))[..., 0].reshape(-1)))
                writer.writerow((numbers[c], pixels, "Training" if split == "train" else ("PublicTest", "PrivateTest")[row % 2]))


def eurosat(root):
    names = tasks.task("eurosat", "tall").folders
    for c, name in enumerate(names):
        for number in range(543):
            put(root / f"eurosat/2750/{name}/{name}_{number + 1}.jpg", image(c, number % 7, TEST, (8, 8)))


def sun397(root):
    names = [name.replace(" ", "_") for name in folders.class_names(tasks.task("sun397", "tall"))[0]]
    for split, labels in sets(397):
        lines = []
        for row, c in enumerate(labels):
            folder = names[c].replace("_indoor", "/indoor").replace("_outdoor", "/outdoor")
            lines.append(f"/{folder[0]}/{folder}/sun_{split}{row}.jpg\n")
            put(root / "SUN397" / lines[-1].strip("/\n"), image(c, row, split == "train", (6, 6)))
        (root / f"SUN397/{'Training' if split == 'train' else 'Testing'}_01.txt").write_text("".join(lines))


def resisc45(root):
    names = [name.replace(" ", "_") for name in folders.class_names(tasks.task("resisc45", "tall"))[0]]
    for split, labels in sets(45):
        lines = []
        for row, c in enumerate(labels):
            lines.append(f"{names[c]}_{split[:2]}{row:03d}.jpg\n")
            put(root / f"resisc45/NWPU-RESISC45/{names[c]}" / lines[-1].strip(), image(c, row, split == "train"))
        (root / f"resisc45/resisc45-{split}.txt").write_text("".join(lines))


def pcam(root):
    (root / "pcam").mkdir(parents=True)
    for split, labels in sets(2):
        images = np.stack([image(c, row, split == "train", (96, 96)) for row, c in enumerate(labels)])
        for kind, content in (("x", images), ("y", np.array(labels, np.uint8).reshape(-1, 1, 1, 1))):
            with (root / f"pcam/camelyonpatch_level_2_split_{split}_{kind}.h5").open("wb") as file:
                np.savez(file, **{kind: content})


LAYOUTS = {
    "mnist": mnist, "fashion_mnist": fashion_mnist, "kmnist": kmnist, "emnist": emnist, "svhn": svhn, "cifar10": cifar10,
    "cifar100": cifar100, "stl10": stl10, "dtd": dtd, "gtsrb": gtsrb, "flowers102": flowers102, "stanford_cars": stanford_cars,
    "oxford_iiit_pet": oxford_iiit_pet, "food101": food101, "rendered_sst2": rendered_sst2, "fer2013": fer2013, "sun397": sun397,
    "resisc45": resisc45, "pcam": pcam,
}
GREY = {"mnist", "fashion_mnist", "kmnist", "emnist", "fer2013"}
SHAPES = {
    **dict.fromkeys(GREY, (28, 28)), "fer2013": (48, 48), "svhn": (32, 32), "cifar10": (32, 32), "cifar100": (32, 32),
    "stl10": (96, 96), "sun397": (6, 6), "pcam": (96, 96),
}


@pytest.fixture(autouse=True)
def surroundings(monkeypatch):
    """Leave torchvision's file checksums out, as the files here are not the published ones, and stand in for h5py."""
    import fusionbench_lite.base.torchvision_ops  # noqa: F401  (before torchvision)

    # isort: split
    from torchvision import datasets

    present = lambda path, md5=None: Path(path).is_file()  # noqa: E731
    for module in (datasets.svhn, datasets.cifar, datasets.stl10, datasets.flowers102, datasets.fer2013):
        monkeypatch.setattr(module, "check_integrity", present)
    h5py = types.ModuleType("h5py")
    h5py.File = np.load
    monkeypatch.setitem(sys.modules, "h5py", h5py)
    asked = []
    plain = getattr(text_heads, "check_order", lambda *_: "not comparable")
    monkeypatch.setattr(text_heads, "check_order", lambda *call: (asked.append(call), plain(*call))[1], raising=False)
    return asked


def sources(tmp_path, task: str, classes: int, variant: str = "tall", **others) -> vision.Sources:
    file = small_tasks(tmp_path / f"{task}.yaml", {task: (2 * classes, classes)})
    return vision.Sources(variant, tmp_path / "cache", tmp_path / "data", source="folder", tasks_file=file, **others)


def expected(task: str, label: int, row: int, split: int) -> np.ndarray:
    found = image(label, row, split, SHAPES.get(task, (24, 20)))
    return decoding.square(Image.fromarray(found[..., 0] if task in GREY else found), SIZE)


@pytest.mark.parametrize("task", LAYOUTS)
def test_archives_as_they_unpack(tmp_path, task, surroundings):
    classes = vision.task(task, "tall").classes
    LAYOUTS[task](tmp_path / "data")
    data = vision.load(task, sources(tmp_path, task, classes), None, SIZE)
    for split, labels in sets(classes):
        images, found = getattr(data, f"{split}_images"), np.asarray(getattr(data, f"{split}_labels"))
        assert len(images) == len(found) == len(labels)
        assert sorted(found.tolist()) == sorted(labels)
        wanted = {(c, expected(task, c, row, split == "train").tobytes()) for row, c in enumerate(labels)}
        assert {(c, square.tobytes()) for c, square in zip(found.tolist(), np.asarray(images), strict=True)} == wanted
    names = [call[2] for call in surroundings if call[2] is not None]
    assert all(len(entry) == classes for entry in names)
    assert len(data.sha256) == 64


def test_letters_are_numbered_from_zero(tmp_path):
    emnist_letters(tmp_path / "data")
    data = vision.load("emnist", sources(tmp_path, "emnist", 26, "fusionbench"), None, SIZE)
    labels = sets(26)[1][1]
    assert data.test_labels.tolist() == labels
    assert np.array_equal(data.test_images[3], decoding.square(Image.fromarray(grey(labels[3], 3, TEST)), SIZE))
    # The digits are not there, and the letters are not taken for them.
    with pytest.raises(InputError, match="EMNIST cannot read"):
        vision.load("emnist", sources(tmp_path, "emnist", 10), None, SIZE)


def test_each_face_has_the_number_of_its_alphabetical_name(tmp_path):
    fer2013(tmp_path / "data")
    data = vision.load("fer2013", sources(tmp_path, "fer2013", 7), None, SIZE)
    assert data.test_labels.tolist() == sets(7)[1][1]


def test_a_random_split_without_overlap(tmp_path):
    eurosat(tmp_path / "data")
    file = small_tasks(tmp_path / "tasks.yaml", {"eurosat": (30, 2700)})
    given = vision.Sources("tall", tmp_path / "cache", tmp_path / "data", tasks_file=file)
    place = vision.sources.local_source(vision.task("eurosat", "tall", given.tasks_file), given, "test")
    test, train = place.split("test"), place.split("train")
    assert np.bincount(test.labels).tolist() == [270] * 10
    assert np.bincount(train.labels).tolist() == [3] * 10
    assert not set(test.encoded.paths) & set(train.encoded.paths)
    assert test.encoded.paths == place.split("test").encoded.paths
    assert test.identity != train.identity
    (note,) = test.notes
    assert "drawn here" in note
    other = dataclasses.replace(given, variant="fusionbench")
    assert vision.sources.local_source(vision.task("eurosat", "fusionbench", file), other, "test").split("test").notes == (note,)


def test_sizes_are_those_of_the_table(tmp_path):
    mnist(tmp_path / "data")
    given = vision.Sources("tall", tmp_path / "cache", tmp_path / "data")
    with pytest.raises(InputError, match=r"MNIST/raw, test has 10 images, but 10,000 are expected"):
        vision.load("mnist", given, None, SIZE)


def test_damaged_archives(tmp_path):
    given = sources(tmp_path, "mnist", 10)
    mnist(tmp_path / "data")
    raw = tmp_path / "data/MNIST/raw"
    (raw / "t10k-images-idx3-ubyte").write_bytes((raw / "t10k-images-idx3-ubyte").read_bytes()[:500])
    with pytest.raises(InputError, match=r"torchvision's MNIST cannot read the files below") as caught:
        vision.load("mnist", given, None, SIZE)
    assert "\n" not in str(caught.value)
    given = sources(tmp_path, "dtd", 47)
    dtd(tmp_path / "data")
    labels = tmp_path / "data/dtd/dtd/labels"
    lines = (labels / "val1.txt").read_text().splitlines(keepends=True)
    (labels / "val1.txt").write_text("".join(line for line in lines if not line.startswith("banded")))
    data = vision.load("dtd", given, None, SIZE)
    with pytest.raises(InputError, match="do not name the same classes"):
        data.train_images[:1]
    picture_file = next((tmp_path / "data/dtd/dtd/images/banded").glob("*test*"))
    picture_file.write_bytes(b"no image")
    with pytest.raises(InputError, match=rf"1 of 47 images.*{picture_file.name}.*skip_corrupt=1"):
        vision.load("dtd", given, None, SIZE)
    assert len(vision.load("dtd", dataclasses.replace(given, skip_corrupt=1), None, SIZE).test_labels) == 46
    picture_file.unlink()
    with pytest.raises(InputError, match=f"cannot read .*{picture_file.name}"):
        vision.load("dtd", given, None, SIZE)


def test_lists_that_are_missing(tmp_path):
    resisc45(tmp_path / "data")
    (tmp_path / "data/resisc45/resisc45-test.txt").rename(tmp_path / "data/resisc45/NWPU-RESISC45/resisc45-test.txt")
    given = sources(tmp_path, "resisc45", 45)
    assert len(vision.load("resisc45", given, None, SIZE).test_labels) == 45
    (tmp_path / "data/resisc45/NWPU-RESISC45/resisc45-test.txt").unlink()
    with pytest.raises(InputError, match=r"resisc45-test.txt is neither in"):
        vision.load("resisc45", given, None, SIZE)


def test_test_labels_that_were_never_published(tmp_path):
    """Kaggle's own test.csv has no labels."""
    (tmp_path / "data/fer2013").mkdir(parents=True)
    pixels = " ".join(["7"] * 48 * 48)
    (tmp_path / "data/fer2013/test.csv").write_text(f"pixels\n{pixels}\n")
    with pytest.raises(InputError, match="FER2013 below .* have no labels"):
        vision.load("fer2013", sources(tmp_path, "fer2013", 7), None, SIZE)


def test_compressed_files_are_not_mistaken(tmp_path):
    mnist(tmp_path / "data")
    raw = tmp_path / "data/MNIST/raw/t10k-labels-idx1-ubyte"
    raw.write_bytes(gzip.compress(raw.read_bytes()))
    with pytest.raises(InputError, match="MNIST cannot read"):
        vision.load("mnist", sources(tmp_path, "mnist", 10), None, SIZE)
