"""Tasks that no repository of the hub holds: a published zip file of gzipped idx files, fetched by address and MD5.

Of the archive only the task's own members are unpacked, into the layout that torchvision's class reads, beside the archive in the
cache; that copy is read from then on, and the archive may be deleted. Names of files come from the table of tasks, none from the
archive, and no member is unpacked further than the number of its images says.
"""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import json
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from fusionbench_lite.data.vision.encoded import Split
from fusionbench_lite.data.vision.published_folders import PublishedFolder
from fusionbench_lite.data.vision.tasks import Archive, Local, Task, unpacked_names
from fusionbench_lite.errors import InputError
from fusionbench_lite.hub import web
from fusionbench_lite.paths import atomic_directory, locked

if TYPE_CHECKING:
    from fusionbench_lite.data.vision.cache import Report

_CONTENTS = "contents.json"
_BLOCK = 1 << 20
_UNSIGNED_BYTES = 8
"""The type of idx files of images and labels."""


@dataclasses.dataclass(frozen=True)
class Member:
    """A file to unpack: its name in the archive, its path in the layout, and the idx header that it has to begin with."""

    name: str
    path: str
    shape: tuple[int, ...]

    @property
    def header(self) -> bytes:
        """The header: two zeros, type, number of dimensions, dimensions."""
        dimensions = len(self.shape)
        return struct.pack(f">BBBB{dimensions}I", 0, 0, _UNSIGNED_BYTES, dimensions, *self.shape)

    @property
    def size(self) -> int:
        """Bytes of the unpacked file."""
        count = 1
        for length in self.shape:
            count *= length
        return len(self.header) + count


class PublishedArchive:
    """The archive of a task, and what is unpacked of it."""

    exact = True

    def __init__(self, task: Task, archive: Archive, local: Local, cache: Path, report: Report | None = None) -> None:
        self.task, self.archive, self.local, self.cache, self.report = task, archive, local, cache, report
        self.file = archive.file
        self.root = web.made_from(self.file, task.name, cache)
        names = unpacked_names(archive, local)
        self.members = {
            split: [
                Member(name, names[name], (task.size(split), *(archive.image if kind == "images" else ())))
                for kind, name in getattr(archive, split).items()
            ]
            for split in ("train", "test")
        }

    def has(self, split: str) -> bool:
        """Say whether the archive holds a split: train and test, no other."""
        return split in self.members

    def fingerprint(self, split: str) -> str:
        """Return the hash that the same files below data_dir have.

        It takes the labels, and so the archive. Both splits are in it, so that nothing is fetched once there are test images.
        """
        self._unpacked()
        return PublishedFolder(self.task, self.local, self.root).fingerprint(split)

    def split(self, split: str) -> Split:
        """Return a split, after fetching and unpacking the archive where that is still to be done; raises InputError."""
        hashes = self._unpacked()
        read = PublishedFolder(self.task, self.local, self.root).split(split)
        files = tuple((f"{self.archive.url}:{member.name}", hashes[member.path]) for member in self.members[split])
        return dataclasses.replace(read, where=f"archive {self.archive.url} (MD5 {self.archive.md5}), {split}", files=files)

    def present(self) -> Mapping[str, str] | None:
        """Return the SHA-256 of the unpacked files by path where all are there and sound, else None. Makes no request."""
        try:
            noted = json.loads((self.root / _CONTENTS).read_text(encoding="utf-8"))
            sums = {member.path: str(noted[member.path]) for member in self._all()}
        except (OSError, ValueError, KeyError, TypeError):
            return None
        sound = (web.is_sound(self.root / one.path, sums[one.path], one.size, self.cache) for one in self._all())
        return sums if all(sound) else None

    def _all(self) -> list[Member]:
        return [member for split in self.members.values() for member in split]

    def _unpacked(self) -> Mapping[str, str]:
        sums = self.present()
        if sums is not None:
            return sums
        with locked(self.root.parent / ".locks" / f"{self.root.name}.lock"):
            sums = self.present()  # another process may have unpacked it meanwhile
            if sums is not None:
                return sums
            path = web.fetch(self.file, self.cache, self.report)
            with atomic_directory(self.root) as folder:
                hashes = self._unpack(path, folder)
                (folder / _CONTENTS).write_text(json.dumps(hashes, indent=1) + "\n", encoding="utf-8")
        return hashes

    def _unpack(self, path: Path, folder: Path) -> dict[str, str]:
        hashes = {}
        name = path.name
        try:
            with zipfile.ZipFile(path) as archive:
                for member in self._all():
                    name = member.name
                    target = folder / member.path
                    target.parent.mkdir(parents=True, exist_ok=True)
                    hashes[member.path] = self._copy(archive, member, target)
        except (zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, EOFError, RuntimeError) as error:
            # RuntimeError: encrypted, or packed in a way that this Python cannot read
            raise self._refusal(f"{name} cannot be unpacked ({error})") from error
        return hashes

    def _copy(self, archive: zipfile.ZipFile, member: Member, target: Path) -> str:
        """Unpack a member, as far as its expected size and not a byte further; returns its SHA-256."""
        try:
            packed = archive.getinfo(member.name)
        except KeyError:
            held = ", ".join(archive.namelist()[:3]) or "nothing"
            raise self._refusal(f"it has no member {member.name} (it holds {held}, ...)") from None
        if packed.file_size > member.size + member.size // 1000 + _BLOCK:  # what does not compress grows by less than this
            raise self._refusal(f"{member.name} has {packed.file_size:,} bytes, and about {member.size:,} are expected at most")
        digest = hashlib.sha256()
        with archive.open(packed) as raw, gzip.open(raw) as source, target.open("wb") as out:
            header = source.read(len(member.header))
            if header != member.header:
                raise self._refusal(f"{member.name} does not begin as an idx file of shape {list(member.shape)} does")
            digest.update(header)
            out.write(header)
            self._copy_content(source, out, member, digest)
        return digest.hexdigest()

    def _copy_content(self, source: gzip.GzipFile, out: BinaryIO, member: Member, digest: hashlib._Hash) -> None:
        left = member.size - len(member.header)
        while left:
            block = source.read(min(_BLOCK, left))
            if not block:
                raise self._refusal(f"{member.name} unpacks to {member.size - left:,} bytes, and {member.size:,} are expected")
            digest.update(block)
            out.write(block)
            left -= len(block)
        if source.read(1):  # which also reads on to the checksums at the end of the member
            raise self._refusal(f"{member.name} unpacks to more than the {member.size:,} bytes that are expected")

    def _refusal(self, reason: str) -> InputError:
        return InputError(
            f"task {self.task.name!r}: archive {self.archive.url} has the expected MD5 {self.archive.md5}, but {reason}: correct "
            "its entry in data.tasks_file"
        )
