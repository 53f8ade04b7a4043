"""Score a run against its references."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from pedcxr_client.evaluation import subgroups
from pedcxr_client.evaluation.lexicon import Lexicon
from pedcxr_client.evaluation.negation import Assertion, read
from pedcxr_client.evaluation.references import Reference, ReferenceRow
from pedcxr_client.evaluation.runs import Run
from pedcxr_client.evaluation.statistics import Agreement, Difference, Rate, agreement, compare
from pedcxr_client.evaluation.text_overlap import Overlap, overlap

ANY = "any abnormality"
"""Name of the row that states whether a film has any abnormal finding."""

Uncertain = Literal["positive", "negative"]
Labels = Mapping[str, bool | None]
"""Whether each finding, and `ANY`, is present on a film; None if unknown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Agreement of the reports of a run with the references.

    Attributes:
        films: ids in both files.
        only_run, only_reference: ids in one of the files.
        finished: films with a report, of the films in both files. The other films failed and count in no other figure.
        findings: agreement by finding, and for `ANY`.
        unused: findings that neither the reports nor the references contain.
        groups: by ``"age"``, ``"sex"`` and ``"view"``, then by group: agreement on `ANY` and every finding.
        overlap: None without reference texts.
        distinct: number of distinct texts among the reports.
        largest: number of reports with the most frequent text.
        all_normal, right_all_normal: rate of reports, and of references, without an abnormal finding.
        against: comparison with another run by finding.
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
        """Rate of reports that repeat the text of an earlier report."""
        return Rate.of(self.finished.hits - self.distinct, self.finished.hits)

    def as_dict(self) -> dict[str, object]:
        """Return all fields as values that ``json.dumps`` accepts, without texts and ids."""
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

    The reference standard is the columns of findings if the file has any. Otherwise it is the reference reports, read
    with the lexicon like the reports of the run. An uncertain finding counts as present ("positive") or absent
    ("negative"). Raise ConfigurationError if the extra ``pedcxr[eval]`` is not installed.
    """
    labeller = _Labeller(lexicon, uncertain)
    ids = [name for name in reference.rows if name in run.reports]
    failures = sum(name in run.failed for name in reference.rows)
    rows = [reference.rows[name] for name in ids]
    texts = [run.reports[name].text for name in ids]
    truths = [labeller.reference_labels(row, reference.columns) for row in rows]
    predictions = [labeller.labels(text) for text in texts]
    names = reference.columns or tuple(lexicon.findings)
    scored = [name for name in names if reference.columns or any(labels[name] for labels in (*truths, *predictions))]
    groups = {key: _indices_by_group(key, ids, run, reference) for key in _GROUPINGS}
    pairs = [(row.text, text) for row, text in zip(rows, texts, strict=True) if row.text is not None]
    text_counts = Counter(" ".join(text.split()) for text in texts)
    return Evaluation(
        lexicon_version=lexicon.version,
        lexicon_sha256=lexicon.sha256,
        uncertain=uncertain,
        models=run.models,
        lines=run.lines,
        films=len(ids) + failures,
        only_run=len((run.reports.keys() | run.failed) - reference.rows.keys()),
        only_reference=len(reference.rows.keys() - run.reports.keys() - run.failed),
        finished=Rate.of(len(ids), len(ids) + failures),
        findings=_agreements([*scored, ANY], truths, predictions),
        unused=tuple(name for name in names if name not in scored),
        groups={
            grouping: {
                group: _agreements([ANY, *scored], [truths[at] for at in indices], [predictions[at] for at in indices])
                for group, indices in members.items()
            }
            for grouping, members in groups.items()
        },
        overlap=overlap([text for _, text in pairs], [truth for truth, _ in pairs]),
        distinct=len(text_counts),
        largest=max(text_counts.values(), default=0),
        all_normal=_share(labels[ANY] is False for labels in predictions),
        right_all_normal=_share(labels[ANY] is False for labels in truths if labels[ANY] is not None),
        against=None if against is None else _compare(labeller, [*scored, ANY], ids, truths, predictions, against),
    )


class _Labeller:
    """Converts texts and reference rows to labels."""

    def __init__(self, lexicon: Lexicon, uncertain: Uncertain) -> None:
        self.lexicon = lexicon
        self.positive = {Assertion.PRESENT} | ({Assertion.UNCERTAIN} if uncertain == "positive" else set())

    def labels(self, text: str) -> Labels:
        labels: dict[str, bool | None] = {
            name: assertion in self.positive for name, assertion in read(text, self.lexicon).items()
        }
        return labels | {ANY: self._any(labels)}

    def reference_labels(self, row: ReferenceRow, columns: Sequence[str]) -> Labels:
        if columns:
            return {**row.findings, ANY: self._any(row.findings)}
        if row.text is None:
            return dict.fromkeys([*self.lexicon.findings, ANY])
        return self.labels(row.text)

    def _any(self, labels: Labels) -> bool | None:
        """Return whether an abnormal finding is present; None if it depends on an unknown finding."""
        abnormal = [label for name, label in labels.items() if self.lexicon.findings[name].abnormal]
        return True if any(abnormal) else None if None in abnormal else False


def _agreements(names: Sequence[str], truths: Sequence[Labels], predictions: Sequence[Labels]) -> dict[str, Agreement]:
    return {
        name: agreement(
            (label, bool(prediction[name]))
            for truth, prediction in zip(truths, predictions, strict=True)
            if (label := truth[name]) is not None
        )
        for name in names
    }


def _share(flags: Iterable[bool]) -> Rate:
    values = list(flags)
    return Rate.of(sum(values), len(values))


_GROUPINGS: dict[str, tuple[Callable[[str | None], str], tuple[str, ...]]] = {
    "age": (subgroups.age_group, subgroups.AGE_GROUPS),
    "sex": (subgroups.sex, subgroups.SEXES),
    "view": (subgroups.view, subgroups.VIEWS),
}


def _indices_by_group(key: str, ids: Sequence[str], run: Run, reference: Reference) -> dict[str, list[int]]:
    # Values of the reference override those of the run.
    group, order = _GROUPINGS[key]
    members: dict[str, list[int]] = {name: [] for name in order}
    for index, name in enumerate(ids):
        value = getattr(reference.rows[name], key) or getattr(run.reports[name], key)
        members[group(value)].append(index)
    return {name: indices for name, indices in members.items() if indices}


def _compare(
    labeller: _Labeller,
    names: Sequence[str],
    ids: Sequence[str],
    truths: Sequence[Labels],
    predictions: Sequence[Labels],
    other: Run,
) -> dict[str, Difference]:
    common_films = [
        (truths[at], predictions[at], labeller.labels(other.reports[name].text))
        for at, name in enumerate(ids)
        if name in other.reports
    ]
    return compare(
        {
            name: [
                (this[name] == truth[name], others[name] == truth[name])
                for truth, this, others in common_films
                if truth[name] is not None
            ]
            for name in names
        }
    )
