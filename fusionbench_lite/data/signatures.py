"""What a file is by its first bytes, in words for people; files that are not what their name says are told so."""

from __future__ import annotations

from pathlib import Path

LENGTH = 160
"""Bytes that `kind_of` looks at."""

_STARTS = (
    (b"\xff\xd8\xff", "JPEG"), (b"\x89PNG\r\n\x1a\n", "PNG"), (b"GIF8", "GIF"), (b"II*\0", "TIFF"), (b"MM\0*", "TIFF"),
    (b"\xff\x0a", "JPEG XL"), (b"\0\0\0\x0cJXL ", "JPEG XL"), (b"\0\0\0\x0cjP  ", "JPEG 2000"), (b"v/1\x01", "OpenEXR"),
)
_OTHER_STARTS = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file it stands for (git lfs pull fetches that)"),
    (b"\0\5\x16\7", "a Mac's resource file"), (b"%PDF", "a PDF file"), (b"PK\3\4", "a zip file"), (b"\x1f\x8b", "a gzip file"),
    (b"Rar!", "a RAR file"), (b"\x93NUMPY", "a NumPy array"),
)
_BRANDS = {
    b"heic": "HEIC", b"heix": "HEIC", b"heim": "HEIC", b"heis": "HEIC", b"hevc": "HEIC", b"hevx": "HEIC", b"mif1": "HEIF",
    b"msf1": "HEIF", b"avif": "AVIF", b"avis": "AVIF", b"crx ": "Canon raw",
}


def image_format(head: bytes) -> str | None:
    """Return the image format that a file of these first bytes has, None where it begins like none that is known."""
    if head[4:8] == b"ftyp":
        return _BRANDS.get(head[8:12])
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WebP"
    if head[128:132] == b"DICM":
        return "DICOM"
    return next((name for start, name in _STARTS if head.startswith(start)), None)


def other_kind(head: bytes) -> str | None:
    """Return what a file of these first bytes is, if that is known and no image of pixels."""
    if head and not head.strip(b"\0"):
        return "zeros"
    if head[4:8] == b"ftyp" and head[8:12] not in _BRANDS:
        return "a video"
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html")):
        return "a page of HTML"
    if text.startswith(b"<svg") or (text.startswith((b"<?xml", b"<!--", b"<!doctype svg")) and b"svg" in text):
        return "an SVG drawing"
    return next((name for start, name in _OTHER_STARTS if head.startswith(start)), None)


def head_of(path: Path) -> bytes:
    """Return the first bytes of a file, none where it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(LENGTH)
    except OSError:
        return b""
