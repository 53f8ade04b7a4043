"""What came of one film among many."""

from __future__ import annotations

from dataclasses import dataclass

from pedcxr_client.errors import PedcxrError
from pedcxr_client.reports.report import Report
from pedcxr_client.request.film_request import FilmRequest


@dataclass(frozen=True, slots=True, kw_only=True, repr=False, eq=False)
class Result:
    """A report or an error: exactly one of the two is not None.

    Attributes:
        index: place of the request among those given, from 0.
        request: the request itself, ``key`` included.
        report: what was written.
        error: why nothing was.
    """

    index: int
    request: FilmRequest
    report: Report | None = None
    error: PedcxrError | None = None

    def __repr__(self) -> str:
        return f"<Result {self.index}: {type(self.error).__name__ if self.error is not None else 'a report'}>"
