"""The files that one ``Client.report`` of a DICOM film passes through."""

from __future__ import annotations

import asyncio.events
import sys
import threading
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, Self

import pytest

import pedcxr_client
from pedcxr_client import Client
from tests.support.films import dicom_maker

PACKAGE = Path(pedcxr_client.__file__).parent
MOST_FILES, MOST_JUMPS_BACK = 20, 6


class Trace:
    """The calls of the package's functions, in all threads, between ``with`` and its end.

    Attributes:
        files: the files that were entered, in the order of their first call, each with the file that called it first.
        jumps_back: the files that a call from a later file enters again. A reader who follows :attr:`files` from top
            to bottom must return to each of them. Each file counts once. Returns of functions do not count, and
            neither do calls by the event loop, which is not our code.
    """

    def __init__(self) -> None:
        self.files: dict[str, str | None] = {}
        self.jumps_back: dict[str, str] = {}
        self._names: dict[CodeType, str | None] = {}

    def __enter__(self) -> Self:
        threading.setprofile(self._profile)
        sys.setprofile(self._profile)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)
        threading.setprofile(None)

    def _profile(self, frame: FrameType, event: str, argument: Any) -> None:
        if event != "call" or (name := self._name(frame.f_code)) is None:
            return
        caller = self._caller(frame)
        if name not in self.files:
            self.files[name] = caller
        order = list(self.files)
        if caller is not None and order.index(caller) > order.index(name):
            self.jumps_back.setdefault(name, caller)

    def _caller(self, frame: FrameType) -> str | None:
        back = frame.f_back
        while back is not None and back.f_code.co_filename != asyncio.events.__file__:
            if (name := self._name(back.f_code)) is not None and name in self.files:
                return name
            back = back.f_back
        return None

    def _name(self, code: CodeType) -> str | None:
        if code not in self._names:
            path = Path(code.co_filename)
            inside = path.is_relative_to(PACKAGE) and code.co_name != "<module>"
            self._names[code] = str(path.relative_to(PACKAGE)) if inside else None
        return self._names[code]


def test_a_report_passes_through_few_files(engine):
    pytest.importorskip("pydicom")
    film = dicom_maker.film()
    with Client(engine.url) as client:
        with Trace() as trace:
            client.report(film)
        client.report(film)
    print()
    for number, (name, caller) in enumerate(trace.files.items(), 1):
        print(f"{number:3} {name:32} called by {caller or 'the application'}")
    for name, caller in trace.jumps_back.items():
        print(f"    jump back to {name} from {caller}")
    assert len(trace.files) <= MOST_FILES
    assert len(trace.jumps_back) <= MOST_JUMPS_BACK
