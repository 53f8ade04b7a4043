"""A real PACS: Orthanc with its DICOMweb plugin, if it is installed (Debian's orthanc and orthanc-dicomweb)."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest

T = TypeVar("T")
ORTHANC = shutil.which("Orthanc")
AET = "ORTHANC"


def plugin(name: str) -> Path | None:
    """Return the path of a plugin of Debian, unpacked beside the command or installed; None if it is absent."""
    if ORTHANC is None:
        return None
    root = Path(ORTHANC).parent.parent
    folders = (root / "share/orthanc/plugins", root / "usr/share/orthanc/plugins", Path("/usr/share/orthanc/plugins"))
    return next((folder / name for folder in folders if (folder / name).exists()), None)


DICOMWEB, PYTHON = plugin("libOrthancDicomWeb.so"), plugin("libOrthancPython.so")
needs_orthanc = pytest.mark.skipif(
    DICOMWEB is None, reason="Orthanc is not installed; Debian's packages are orthanc and orthanc-dicomweb"
)
needs_python = pytest.mark.skipif(PYTHON is None, reason="the plugin is not installed; Debian's is orthanc-python")


@dataclass(frozen=True)
class Orthanc:
    """A running Orthanc: its HTTP address, and the port of its DICOM server."""

    url: str
    port: int

    def get(self, path: str, **arguments: Any) -> Any:
        """Return the JSON of a resource."""
        return httpx.get(self.url + path, timeout=30, **arguments).raise_for_status().json()


@contextmanager
def orthanc(folder: Path, **options: Any) -> Iterator[Orthanc]:
    """Run Orthanc on free ports of loopback, with its files in a folder, until the end of the block."""
    http, dicom = _free_port(), _free_port()
    assert ORTHANC is not None
    database = str(folder / "db")
    config = {
        "Name": "test", "HttpPort": http, "DicomPort": dicom, "DicomAet": AET, "StorageDirectory": database,
        "IndexDirectory": database, "RemoteAccessAllowed": False, "AuthenticationEnabled": False,
        "DicomAlwaysAllowStore": True, "DefaultEncoding": "Utf8",
        "Plugins": [str(path) for path in (DICOMWEB, PYTHON) if path], **options,
    }  # fmt: skip
    (folder / "orthanc.json").write_text(json.dumps(config))
    with (folder / "log").open("w") as log, subprocess.Popen([ORTHANC, folder / "orthanc.json"], stderr=log) as process:
        try:
            server = Orthanc(f"http://127.0.0.1:{http}", dicom)
            await_value(lambda: _is_up(server.url) or process.poll() is not None)
            assert process.poll() is None, (folder / "log").read_text()
            yield server
        finally:
            process.terminate()


def await_value(read: Callable[[], T], seconds: float = 60) -> T:
    """Call a function until it returns a true value; fail after the time limit."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := read():
            return value
        time.sleep(0.1)
    raise AssertionError(f"no value after {seconds:g} s")


def _is_up(url: str) -> bool:
    try:
        return httpx.get(f"{url}/system").status_code == 200
    except httpx.HTTPError:
        return False


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port
