"""A folder of films, walked to its leaves. Magic bytes decide what is a film, never a name."""

from __future__ import annotations

import os
from collections.abc import Iterator

from pedcxr_client.batch.manifest import Entry, LeftOut
from pedcxr_client.errors import InputError
from pedcxr_client.films import dicom

_BEGINNINGS = (b"\x89PNG", b"\xff\xd8\xff", b"II*\0", b"MM\0*", b"BM", b"GIF8", b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51")
_DICOMDIR = b"1.2.840.10008.1.3.10\0"  # Media Storage Directory Storage (PS3.4 annex B), in the file meta information
_SNIFFED = 1024  # bytes, more than the preamble and the file meta information as far as its SOP class


def walk(folder: str, *, allow_outside: bool = False, leave: str | None = None) -> Iterator[Entry | LeftOut]:
    """Everything in a folder and those below it, in the order of names; one folder's names are held at a time.

    A file that cannot be opened may well be a film, and is given as one, so that its error is not lost. Links to
    folders are not followed.

    Args:
        folder: where to begin.
        allow_outside: take links to files outside the folder too.
        leave: a file not to be mentioned: the output, should it be in there.

    Raises:
        InputError: if the folder cannot be listed.
    """
    inside = os.path.join(os.path.realpath(folder), "")
    yield from _walk(folder, "", inside if not allow_outside else None, leave and os.path.realpath(leave))


def _walk(folder: str, prefix: str, inside: str | None, leave: str | None) -> Iterator[Entry | LeftOut]:
    try:
        with os.scandir(folder) as found:
            names = sorted((one.name, one.is_dir(follow_symlinks=False)) for one in found)
    except OSError as error:
        if prefix:
            yield LeftOut(id=_shown(prefix), reason="a folder that cannot be listed")
            return
        raise InputError(f"the folder: {error.strerror or 'cannot be listed'}; check the path") from error
    for name, is_folder in names:
        path, below = os.path.join(folder, name), f"{prefix}{name}"
        if is_folder:
            yield from _walk(path, below + "/", inside, leave)
            continue
        real = os.path.realpath(path)
        if real == leave:
            continue
        if inside is not None and not os.path.isdir(real) and not real.startswith(inside):
            yield LeftOut(id=_shown(below), reason="a link that leads out of the folder")
        elif (reason := why_no_film(path)) is not None:
            yield LeftOut(id=_shown(below), reason=reason)
        else:
            yield Entry(id=_shown(below), path=path)


def why_no_film(path: str) -> str | None:
    """Why a file is no film; None if it may be one."""
    if os.path.isdir(path):
        return "a link to a folder"
    if not os.path.isfile(path):
        return "a link that leads nowhere" if os.path.islink(path) else "not a regular file"
    try:
        with open(path, "rb") as file:
            data = file.read(_SNIFFED)
    except OSError:
        return None
    if not data:
        return "empty"
    if dicom.is_dicom(data):
        return "a DICOMDIR, the index of other files" if _DICOMDIR in data else None
    if data.startswith(_BEGINNINGS) or data[8:12] == b"WEBP" or data[4:8] == b"ftyp":
        return None
    return "neither DICOM nor an image"


def _shown(path: str) -> str:
    """A path fit for JSON: bytes that are no UTF-8 are escaped."""
    return path.encode(errors="backslashreplace").decode()
