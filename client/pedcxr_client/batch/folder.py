"""A folder of films, searched recursively. Magic bytes decide what is a film, not file names."""

from __future__ import annotations

import os
from collections.abc import Iterator

from pedcxr_client.batch.manifest import Entry, SkippedFile
from pedcxr_client.errors import InputError
from pedcxr_client.films import dicom

_IMAGE_MAGIC = (
    b"\x89PNG", b"\xff\xd8\xff", b"II*\0", b"MM\0*", b"BM", b"GIF8", b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51",
)  # fmt: skip
_DICOMDIR = b"1.2.840.10008.1.3.10\0"  # Media Storage Directory Storage (PS3.4 annex B), in the file meta information
_HEAD_BYTES = 1024  # longer than the preamble and the file meta information up to its SOP class


def walk(folder: str, *, allow_outside: bool = False, exclude: str | None = None) -> Iterator[Entry | SkippedFile]:
    """Yield the files of a folder and its subfolders, sorted by name within each folder.

    A file that cannot be opened is yielded as an Entry, so that its error is reported. Links to folders are not
    followed. ``exclude`` is the path of a file to ignore, such as the output file.
    """
    root = os.path.join(os.path.realpath(folder), "")
    yield from _walk(folder, "", root if not allow_outside else None, exclude and os.path.realpath(exclude))


def _walk(folder: str, prefix: str, root: str | None, exclude: str | None) -> Iterator[Entry | SkippedFile]:
    try:
        with os.scandir(folder) as items:
            names = sorted((item.name, item.is_dir(follow_symlinks=False)) for item in items)
    except OSError as error:
        if prefix:
            yield SkippedFile(id=_printable(prefix), reason="a folder that cannot be listed")
            return
        raise InputError(f"the folder: {error.strerror or 'cannot be listed'}; check the path") from error
    for name, is_folder in names:
        path, relative = os.path.join(folder, name), f"{prefix}{name}"
        if is_folder:
            yield from _walk(path, relative + "/", root, exclude)
            continue
        real = os.path.realpath(path)
        if real == exclude:
            continue
        if root is not None and not os.path.isdir(real) and not real.startswith(root):
            yield SkippedFile(id=_printable(relative), reason="a link to a file outside the folder")
        elif (reason := skip_reason(path)) is not None:
            yield SkippedFile(id=_printable(relative), reason=reason)
        else:
            yield Entry(id=_printable(relative), path=path)


def skip_reason(path: str) -> str | None:
    """Return why a file is not a film, or None if it may be one."""
    if os.path.isdir(path):
        return "a link to a folder"
    if not os.path.isfile(path):
        return "a broken link" if os.path.islink(path) else "not a regular file"
    try:
        with open(path, "rb") as file:
            data = file.read(_HEAD_BYTES)
    except OSError:
        return None
    if not data:
        return "empty"
    if dicom.is_dicom(data):
        return "a DICOMDIR, the index of other files" if _DICOMDIR in data else None
    if data.startswith(_IMAGE_MAGIC) or data[8:12] == b"WEBP" or data[4:8] == b"ftyp":
        return None
    return "neither DICOM nor an image"


def _printable(path: str) -> str:
    """Return the path as valid Unicode; bytes that are not UTF-8 are escaped."""
    return path.encode(errors="backslashreplace").decode()
