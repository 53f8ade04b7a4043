"""From a run and its references to an :class:`Evaluation`. Pure but for the libraries of statistics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from pedcxr_client.evaluation import subgroups
from pedcxr_client.evaluation.lexicon import Lexicon
from pedcxr_client.evaluation.negation import Said, read
from pedcxr_client.evaluation.references import Reference, Right
from pedcxr_client.evaluation.runs import Run
from pedcxr_client.evaluation.statistics import Agreement, Difference, Rate, agreement, compare
from pedcxr_client.evaluation.text_overlap import Overlap, overlap

ANY = "any abnormality"
"""The row of whether a film shows anything abnormal at all: what a screening would ask."""

Uncertain = Literal["positive", "negative"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """How a run's reports agree with the references.

    Attributes:
        lexicon_version, lexicon_sha256: of the lexicon that read the reports.
        uncertain: what a finding counts as that a text calls possible.
        models: that wrote the run, as its lines name them.
        films: ids in both files; ``only_run`` and ``only_reference`` count those in one alone.
        finished: films with a report, of those in both; the others failed and count in no other figure.
        findings: by finding, and for :data:`ANY`; those that neither side ever names are in ``unused``.
        groups: by ``"age"``, ``"sex"`` and ``"view"``, then by group: films, and agreement on :data:`ANY` and on every
            finding.
        overlap: of words, None without reference texts.
        distinct: different texts among the reports; ``largest`` films share the commonest one.
        all_normal, right_all_normal: reports, and references, that name nothing abnormal.
        against: by finding, compared with another run; None without one.
    """

    lexicon_version: str
    lexicon_sha256: str
    uncertain: Uncertain
    models: tuple[str, ...]
    lines: int
    films: int
    only_run: int
    only_reference: int
    finished: Rate
    findings: Mapping[str, Agreement]
    unused: tuple[str, ...]
    groups: Mapping[str, Mapping[str, Mapping[str, Agreement]]]
    overlap: Overlap | None
    distinct: int
    largest: int
    all_normal: Rate
    right_all_normal: Rate
    against: Mapping[str, Difference] | None

    @property
    def duplicates(self) -> Rate:
        """Reports whose text another film's report has word for word, less one for each such text."""
        return Rate.of(self.finished.hits - self.distinct, self.finished.hits)

    def as_dict(self) -> dict[str, object]:
        """Everything, ready for ``json.dumps``; no text and no id."""
        return {**asdict(self), "duplicates": asdict(self.duplicates)}


def evaluate(
    run: Run,
    reference: Reference,
    lexicon: Lexicon,
    *,
    uncertain: Uncertain = "positive",
    against: Run | None = None,
) -> Evaluation:
    """Score a run.

    Columns of findings are the reference where there are any; otherwise the reference's reports, read by the lexicon
    as the run's are.

    Raises:
        ConfigurationError: if the extra ``pedcxr[eval]`` is not installed.
    """
    reader = _Reader(lexicon, uncertain)
    both = [name for name in reference.rows if name in run.reports]
    failed = sum(name in run.failed for name in reference.rows)
    rows = [reference.rows[name] for name in both]
    texts = [run.reports[name].text for name in both]
    right = [reader.right(row, reference.columns) for row in rows]
    said = [reader.said(text) for text in texts]
    names = reference.columns or tuple(lexicon.findings)
    used = [name for name in names if reference.columns or any(one[name] for one in (*right, *said))]
    groups = {key: _by(key, both, run, reference) for key in _GROUPINGS}
    pairs = [(row.text, text) for row, text in zip(rows, texts, strict=True) if row.text is not None]
    spoken = Counter(" ".join(text.split()) for text in texts)
    return Evaluation(
        lexicon_version=lexicon.version,
        lexicon_sha256=lexicon.sha256,
        uncertain=uncertain,
        models=run.models,
        lines=run.lines,
        films=len(both) + failed,
        only_run=len((run.reports.keys() | run.failed) - reference.rows.keys()),
        only_reference=len(reference.rows.keys() - run.reports.keys() - run.failed),
        finished=Rate.of(len(both), len(both) + failed),
        findings=_agreements([*used, ANY], right, said),
        unused=tuple(name for name in names if name not in used),
        groups={
            grouping: {
                group: _agreements([ANY, *used], [right[at] for at in places], [said[at] for at in places])
                for group, places in members.items()
            }
            for grouping, members in groups.items()
        },
        overlap=overlap([text for _, text in pairs], [truth for truth, _ in pairs]),
        distinct=len(spoken),
        largest=max(spoken.values(), default=0),
        all_normal=Rate.of(sum(one[ANY] is False for one in said), len(said)),
        right_all_normal=_share(one[ANY] is False for one in right if one[ANY] is not None),
        against=None if against is None else _against(reader, [*used, ANY], both, right, said, against),
    )


class _Reader:
    """From texts and cells to whether each finding is there: True, False, or None where nobody knows."""

    def __init__(self, lexicon: Lexicon, uncertain: Uncertain) -> None:
        self.lexicon = lexicon
        self.there = {Said.PRESENT, Said.UNCERTAIN} if uncertain == "positive" else {Said.PRESENT}

    def said(self, text: str) -> dict[str, bool | None]:
        found: dict[str, bool | None] = {name: one in self.there for name, one in read(text, self.lexicon).items()}
        return found | {ANY: self._any(found)}

    def right(self, row: Right, columns: Sequence[str]) -> dict[str, bool | None]:
        if columns:
            return {**row.findings, ANY: self._any(row.findings)}
        if row.text is None:
            return dict.fromkeys([*self.lexicon.findings, ANY])
        return self.said(row.text)

    def _any(self, found: Mapping[str, bool | None]) -> bool | None:
        """Whether anything abnormal is there; None where one that is not known may be all there is."""
        abnormal = [value for name, value in found.items() if self.lexicon.findings[name].abnormal]
        return True if any(abnormal) else None if None in abnormal else False


def _agreements(
    names: Sequence[str], right: Sequence[Mapping[str, bool | None]], said: Sequence[Mapping[str, bool | None]]
) -> dict[str, Agreement]:
    """Of each finding, over the films of which it is known."""
    return {
        name: agreement(
            (truth, bool(one[name])) for know, one in zip(right, said, strict=True) if (truth := know[name]) is not None
        )
        for name in names
    }


def _share(flags: Iterable[bool]) -> Rate:
    listed = list(flags)
    return Rate.of(sum(listed), len(listed))


_GROUPINGS: dict[str, tuple[Callable[[str | None], str], tuple[str, ...]]] = {
    "age": (subgroups.age_group, subgroups.AGE_GROUPS),
    "sex": (subgroups.sex, subgroups.SEXES),
    "view": (subgroups.view, subgroups.VIEWS),
}


def _by(key: str, both: Sequence[str], run: Run, reference: Reference) -> dict[str, list[int]]:
    """Places of the films by group, in the groups' own order; the reference's word counts before the run's."""
    group, order = _GROUPINGS[key]
    members: dict[str, list[int]] = {name: [] for name in order}
    for at, name in enumerate(both):
        word = getattr(reference.rows[name], key) or getattr(run.reports[name], key)
        members[group(word)].append(at)
    return {name: places for name, places in members.items() if places}


def _against(
    reader: _Reader,
    names: Sequence[str],
    both: Sequence[str],
    right: Sequence[Mapping[str, bool | None]],
    said: Sequence[Mapping[str, bool | None]],
    other: Run,
) -> dict[str, Difference]:
    shared = [(at, reader.said(other.reports[name].text)) for at, name in enumerate(both) if name in other.reports]
    return compare(
        {
            name: [
                (said[at][name] == right[at][name], others[name] == right[at][name])
                for at, others in shared
                if right[at][name] is not None
            ]
            for name in names
        }
    )
