"""One film per study: a first pass over the headers, without decoding, chooses the film of each study."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import NamedTuple

from pedcxr_client.batch.manifest import Entry
from pedcxr_client.batch.output_file import SkipReason, id_digest
from pedcxr_client.checks import rules
from pedcxr_client.checks.rules import CallerFacts
from pedcxr_client.films import dicom
from pedcxr_client.films.header.facts import PLAIN, Facts

LARGEST_STUDY = 20
"""A study of more films is improbable: de-identification may have written one StudyInstanceUID into all headers."""

_CHUNK = 256
_FRONTAL, _UNKNOWN, _LATERAL, _UNUSABLE = range(4)
_REASONS = (
    "another film comes before it in the order PA, AP, other views, lowest id",
    "its header does not state a frontal view",
    "it is lateral",
    "it is outside the intended use or cannot be read",
)
_PROJECTIONS = {"frontal": _FRONTAL, "": _UNKNOWN, "lateral": _LATERAL}


class _Rank(NamedTuple):
    """The order of the films of one study; the lowest is reported."""

    unusable: bool  # a check of the header blocks it, or an earlier run recorded that it cannot be sent
    projection: int
    is_new: bool  # has no report in the output file
    view: int  # PA, then AP, then any other
    id: str


class StudySelection:
    """The choice of one film for each study.

    Films that no check of the header blocks come first; then frontal films before those of unknown projection, and
    these before lateral ones. Among them, a film that has a report already comes first, so that a resumed run keeps
    it; then PA, AP and other views; then the lowest id. A film without a valid StudyInstanceUID is a study of its own.

    Args:
        caller: returns the caller's statements about a film.
        reported: digests of the ids with a report, see `output_file.id_digest`.
        refused: digests of the ids that cannot be sent.

    It takes about 0.5 KiB of memory for each film.
    """

    def __init__(
        self, caller: Callable[[Entry], CallerFacts], *, reported: Collection[bytes], refused: Collection[bytes]
    ) -> None:
        self._caller, self._reported, self._refused = caller, reported, refused
        # Digest of the id: digest of the study and one byte for `_REASONS`, or b"" without a study.
        self._film_studies: dict[bytes, bytes] = {}
        self._best: dict[bytes, _Rank] = {}
        self._sizes: dict[bytes, int] = {}  # only of studies with two films or more

    def read(self, entries: Iterable[Entry], *, threads: int) -> Iterator[None]:
        """Read the headers of all films, and yield after each film."""
        source = iter(entries)
        with ThreadPoolExecutor(threads) as pool:
            while chunk := list(islice(source, _CHUNK)):
                for entry, facts in zip(chunk, pool.map(_read_facts, chunk), strict=True):
                    try:
                        self.add(entry, facts)
                    except Exception:  # as in _read_facts
                        self.add(entry, PLAIN)
                    yield

    def add(self, entry: Entry, facts: Facts) -> None:
        """Add one film."""
        study = bytes.fromhex(facts.study)
        self._film_studies[id_digest(entry.id)] = b""
        if not study:
            return
        rank = self._rank(entry, facts)
        self._film_studies[id_digest(entry.id)] = study + bytes([_UNUSABLE if rank.unusable else rank.projection])
        best = self._best.setdefault(study, rank)
        if best is not rank:
            self._sizes[study] = self._sizes.get(study, 1) + 1
            self._best[study] = min(best, rank)

    def study_of(self, entry: Entry) -> str:
        """Return `Facts.study` of a film."""
        return self._film_studies.get(id_digest(entry.id), b"")[:-1].hex()

    def reason_to_skip(self, entry: Entry) -> SkipReason | None:
        """Return why a film is not the one of its study, or None if it is."""
        value = self._film_studies.get(id_digest(entry.id))
        if value is None:
            return SkipReason("the file appeared after the headers were read; run the same command again")
        if not value or (best := self._best[value[:-1]]).id == entry.id:
            return None
        reason = value[-1] if value[-1] > (_UNUSABLE if best.unusable else best.projection) else _FRONTAL
        return SkipReason(f"--one-per-study: {_REASONS[reason]}", best.id)

    @property
    def largest_study(self) -> int:
        """The number of films of the largest study."""
        return max(self._sizes.values(), default=1)

    def _rank(self, entry: Entry, facts: Facts) -> _Rank:
        digest = id_digest(entry.id)
        blocked = any(check.blocks for check in rules.check(facts, self._caller(entry)) if check.name != "quality")
        view = facts.view.value if facts.view is not None else ""
        return _Rank(
            blocked or digest in self._refused,
            _PROJECTIONS[facts.projection],
            digest not in self._reported,
            {"PA": 0, "AP": 1}.get(view, 2),
            entry.id,
        )


def _read_facts(entry: Entry) -> Facts:
    # A film that cannot be read, for whatever reason, counts as a study of its own and gets its error in the run.
    try:
        return dicom.read_facts(entry.path)
    except Exception:
        return PLAIN
