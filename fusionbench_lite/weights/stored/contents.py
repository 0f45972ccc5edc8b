"""What a file is, told from its first bytes: safetensors, a pickle, or what a failed download left in its place."""

from __future__ import annotations

import stat
import zipfile
from pathlib import Path

_LOOK = 512
_ARCHIVES = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstandard", b"7z\xbc\xaf": "7-Zip", b"BZh": "bzip2", b"\xfd7zXZ": "xz"}
_FORMATS = {b"GGUF": "llama.cpp (GGUF)", b"\x89HDF": "Keras or HDF5", b"\x93NUMPY": "NumPy"}
_PAGE = (b"<!doctype", b"<html", b"<head", b"<?xml", b"<error")
_LFS = b"version https://git-lfs.github.com/"


def kind_of(file: Path) -> tuple[str, str]:
    """Return what a file is and words for it: "safetensors", "pickle", "foreign" or "unknown" (perhaps damaged).

    The words of a foreign file say what it is and what helps. Nothing of the file is run, 512 bytes of it are read.
    Raises OSError where it cannot be read.
    """
    mode, size = (found := file.stat()).st_mode, found.st_size
    if not stat.S_ISREG(mode):
        what = "a folder" if stat.S_ISDIR(mode) else "no regular file but a pipe or device"
        return "foreign", f"it is {what}: save the weights as a file first"
    with file.open("rb") as opened:
        start = opened.read(_LOOK)
    if not start:
        return "foreign", "it is empty (0 bytes): fetch it again"
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= size:
        return "safetensors", "safetensors"
    if start.startswith(_LFS):
        return "foreign", _pointer(start, size)
    if start.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith(_PAGE):
        return "foreign", "it is a web page that was saved in its place: fetch it again, signed in where the publisher asks for it"
    if start.startswith(b"PK\x03\x04"):
        return _zip(file)
    if start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return "pickle", f"it is a pickle, which is never opened here and is no safetensors file: {unpickled(file)}"
    for magic, name in _ARCHIVES.items():
        if start.startswith(magic):
            return "foreign", f"it is packed with {name}: unpack it and give what it holds"
    for magic, name in _FORMATS.items():
        if start.startswith(magic):
            return "foreign", f"it is a file of {name}, not safetensors: save the model as safetensors with its library"
    if start[257:262] == b"ustar":
        return "foreign", "it is a tar archive: unpack it and give what it holds"
    if _is_text(start):
        line = start.decode("utf-8", "replace").strip().splitlines()[0:1]
        return "foreign", f"it is text ({(line or [''])[0][:60]!r}), not a safetensors file: fetch it again"
    return "unknown", "it is incomplete or not a safetensors file: fetch it again"


def fault_of(file: Path, *allowed: str) -> str | None:
    """Return why a file cannot be read and what helps, without its name; None for safetensors and `allowed` kinds.

    A file that may be damaged safetensors passes: its reader tells.
    """
    try:
        kind, words = kind_of(file)
    except (OSError, ValueError) as error:
        return dangling(file) or f"{first_line(error)}: {permitted(error)}"
    return None if kind in ("safetensors", "unknown", *allowed) else words


def unpickled(file: Path) -> str:
    """Return what works for a pickle. save_pretrained of transformers before 4.35 needs safe_serialization=True."""
    return (
        f"give torch.load({str(file)!r}, weights_only=True) itself where that is a state dict, or save the model as safetensors "
        "with its library's save_pretrained(FOLDER, safe_serialization=True) and give FOLDER; of a CLIP image tower or head, "
        "python -m fusionbench_lite.convert makes a .safetensors file"
    )


def dangling(path: Path) -> str | None:
    """Return what helps where a path is a link that leads nowhere, as the links of an unfinished download do; else None."""
    try:
        if path.is_symlink() and not path.exists():
            return f"it is a link to {path.readlink()}, which is not there: fetch the file again"
    except (OSError, ValueError):
        pass
    return None


def permitted(error: Exception) -> str:
    """Return what helps against an error of reading."""
    return "permit reading it" if isinstance(error, PermissionError) else "give a file that can be read"


def first_line(error: Exception) -> str:
    """Return an error's words on one line, without the path that OSError repeats."""
    text = (error.strerror if isinstance(error, OSError) else None) or str(error).strip()
    return (text.splitlines() or [type(error).__name__])[0]


def _pointer(start: bytes, size: int) -> str:
    stands = next((line[5:] for line in start.decode("ascii", "replace").splitlines() if line.startswith("size ")), "")
    bytes_ = f"{int(stands):,} bytes" if stands.isdecimal() else "a file"
    return f"it is a Git LFS pointer ({size} bytes in place of {bytes_}): run git lfs pull in its repository, or fetch the file"


def _zip(file: Path) -> tuple[str, str]:
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, NotImplementedError, ValueError):
        names = ["data.pkl"]  # a cut archive of torch.save has no list of its entries any more
    if any(name.endswith(("data.pkl", "constants.pkl")) for name in names):
        return "pickle", f"it is an archive of torch.save, which is never opened here and is no safetensors file: {unpickled(file)}"
    if names and all(name.endswith(".npy") for name in names):
        return "foreign", "it is an archive of NumPy (.npz), not safetensors: give its arrays as a state dict of tensors"
    return "foreign", "it is a zip archive: unpack it and give what it holds"


def _is_text(start: bytes) -> bool:
    return all(byte in (9, 10, 13) or 32 <= byte < 127 for byte in start)
