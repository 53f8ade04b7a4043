"""Score a run against its references."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal

from pedcxr_client.evaluation import negation, statistics, subgroups
from pedcxr_client.evaluation.lexicon import Lexicon
from pedcxr_client.evaluation.negation import Assertion
from pedcxr_client.evaluation.references import Reference, ReferenceRow
from pedcxr_client.evaluation.runs import Run
from pedcxr_client.evaluation.statistics import Agreement, Difference, Patients, Rate
from pedcxr_client.evaluation.text_overlap import Overlap, overlap

ANY = "any abnormality"
"""Name of the row that states whether a film has any abnormal finding."""

Uncertain = Literal["positive", "negative"]
Measure = Literal["sensitivity", "specificity"]
Differences = Mapping[str, Mapping[Measure, Difference]]


@dataclass(frozen=True, slots=True)
class Disagreement:
    """The ids of films on which report and reference differ, in the order of the reference file.

    Attributes:
        missed, added: the finding is only in the reference, only in the report.
        other_side: both name the finding with a side, and the sides differ.
    """

    missed: Sequence[str]
    added: Sequence[str]
    other_side: Sequence[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Agreement of the reports of a run with the references.

    Attributes:
        films: ids in both files.
        only_run, only_reference: ids in one of the files.
        clustered_by, clusters: ``"patient"`` or ``"study"`` if its films are resampled together, and their number.
        finished: films with a report, of the films of the reference.
        findings: agreement by finding, and for `ANY`, of the films with a report.
        findings_with_failures: the same for all films of the reference; a film without a report is a disagreement.
        sides: by finding, rate of equal sides, of the films where both texts name the finding with a side.
        unused: findings that neither the reports nor the references contain.
        groups: by ``"age"``, ``"sex"`` and ``"view"``, then by group: agreement on `ANY` and every finding.
        overlap: None without reference texts.
        distinct: number of distinct texts among the reports.
        largest: number of reports with the most frequent text.
        all_normal, right_all_normal: rate of reports, and of references, without an abnormal finding.
        mentions_prior: rate of reports that compare the film with another one; None if the run does not state it.
        against: comparison with another run by finding, on the films with a report in both runs.
        against_with_failures: the same for all films of the reference.
        disagreements: by finding. It has ids and is not part of `as_dict`.
    """

    lexicon_version: str
    lexicon_sha256: str
    uncertain: Uncertain
    models: tuple[str, ...]
    lines: int
    films: int
    only_run: int
    only_reference: int
    clustered_by: str | None
    clusters: int | None
    finished: Rate
    findings: Mapping[str, Agreement]
    findings_with_failures: Mapping[str, Agreement]
    sides: Mapping[str, Rate]
    unused: tuple[str, ...]
    groups: Mapping[str, Mapping[str, Mapping[str, Agreement]]]
    overlap: Overlap | None
    distinct: int
    largest: int
    all_normal: Rate
    right_all_normal: Rate
    mentions_prior: Rate | None
    against: Differences | None
    against_with_failures: Differences | None
    disagreements: Mapping[str, Disagreement]

    @property
    def duplicates(self) -> Rate:
        """Rate of reports that repeat the text of an earlier report. It has no interval: it describes the whole run."""
        rate = Rate.of(self.finished.hits - self.distinct, self.finished.hits)
        return Rate(rate.value, None, None, rate.hits, rate.count)

    def as_dict(self) -> dict[str, object]:
        """Return all fields except ``disagreements`` as values that ``json.dumps`` accepts, without texts and ids."""
        values = {**asdict(self), "duplicates": asdict(self.duplicates)}
        del values["disagreements"]
        return values


def evaluate(
    run: Run, reference: Reference, lexicon: Lexicon, *, uncertain: Uncertain = "positive", against: Run | None = None
) -> Evaluation:
    """Score a run.

    The reference standard is the columns of findings if the file has any. Otherwise it is the reference reports, read
    with the lexicon like the reports of the run. An uncertain finding counts as present ("positive") or absent
    ("negative"). Raise ConfigurationError if the extra ``pedcxr[eval]`` is not installed.
    """
    films = _Films(run, reference, _Labeller(lexicon, uncertain, reference.columns))
    others = None if against is None else films.read(against)
    texts = [run.reports[name].text for name in films.finished]
    pairs = [(name, text) for name in films.finished if (text := reference.rows[name].text) is not None]
    text_counts = Counter(" ".join(text.split()) for text in texts)
    comparable = [name for name in films.finished if films.truths[name].labels[ANY] is not None]
    prior = [run.reports[name].mentions_prior for name in films.finished]
    return Evaluation(
        lexicon_version=lexicon.version,
        lexicon_sha256=lexicon.sha256,
        uncertain=uncertain,
        models=run.models,
        lines=run.lines,
        films=sum(name in run.reports or name in run.failed for name in reference.rows),
        only_run=len((run.reports.keys() | run.failed) - reference.rows.keys()),
        only_reference=len(reference.rows.keys() - run.reports.keys() - run.failed),
        clustered_by=films.clustered_by,
        clusters=len(set(films.patients.values())) if films.clustered_by else None,
        finished=films.rate({name: name in run.reports for name in reference.rows}),
        findings=films.agreements([*films.scored, ANY], films.finished),
        findings_with_failures=films.agreements([*films.scored, ANY], list(reference.rows)),
        sides=films.sides(),
        unused=tuple(name for name in films.names if name not in films.scored),
        groups={key: films.groups(key) for key in _GROUPINGS},
        overlap=overlap([run.reports[name].text for name, _ in pairs], [text for _, text in pairs],
                        [films.patients[name] for name, _ in pairs]),
        distinct=len(text_counts),
        largest=max(text_counts.values(), default=0),
        all_normal=films.rate({name: films.reports[name].labels[ANY] is False for name in comparable}),
        right_all_normal=films.rate({name: films.truths[name].labels[ANY] is False for name in comparable}),
        mentions_prior=None if set(prior) <= {None} else films.rate(dict(zip(films.finished, prior, strict=True))),
        against=None if others is None else films.compare(others, failures=False),
        against_with_failures=None if others is None else films.compare(others, failures=True),
        disagreements={name: films.disagreement(name) for name in films.scored},
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Reading:
    """Whether each finding, and `ANY`, is present (None if unknown), and the sides of the findings that have one."""

    labels: Mapping[str, bool | None]
    sides: Mapping[str, frozenset[str]]


class _Labeller:
    """Converts texts and reference rows to labels."""

    def __init__(self, lexicon: Lexicon, uncertain: Uncertain, columns: Sequence[str]) -> None:
        self.lexicon = lexicon
        self.positive = {Assertion.PRESENT} | ({Assertion.UNCERTAIN} if uncertain == "positive" else set())
        self.columns = columns

    def reference(self, row: ReferenceRow) -> _Reading:
        text = _Reading(dict.fromkeys(self.lexicon.findings), {}) if row.text is None else self._read(row.text)
        reading = replace(text, labels=row.findings) if self.columns else text
        return self._with_any(reading, reading)

    def report(self, text: str, truth: _Reading) -> _Reading:
        """Read a report. `ANY` compares the findings that the reference knows of this film."""
        return self._with_any(self._read(text), truth)

    def _read(self, text: str) -> _Reading:
        mentions = list(negation.mentions(text, self.lexicon))
        statuses = negation.strongest(mentions, self.lexicon)
        sides: dict[str, frozenset[str]] = {}
        for mention in mentions:
            if mention.assertion in self.positive and mention.sides:
                sides[mention.finding] = sides.get(mention.finding, frozenset()) | mention.sides
        return _Reading({name: status in self.positive for name, status in statuses.items()}, sides)

    def _with_any(self, reading: _Reading, truth: _Reading) -> _Reading:
        stated = [name for name, label in truth.labels.items() if label is not None and name != ANY]
        abnormal = any(reading.labels[name] for name in stated if self.lexicon.findings[name].abnormal)
        return replace(reading, labels={**reading.labels, ANY: abnormal if stated else None})


class _Films:
    """The films of the reference with their labels.

    ``patients`` holds the patient or study of each film. A film without a value is a group of its own.
    """

    def __init__(self, run: Run, reference: Reference, labeller: _Labeller) -> None:
        self.run, self.reference, self.labeller = run, reference, labeller
        self.finished = [name for name in reference.rows if name in run.reports]
        self.truths = {name: labeller.reference(row) for name, row in reference.rows.items()}
        self.reports = self.read(run)
        self.names = reference.columns or tuple(labeller.lexicon.findings)
        readings = [reading for name in self.finished for reading in (self.truths[name], self.reports[name])]
        self.scored = [name for name in self.names if reference.columns or any(r.labels[name] for r in readings)]
        self.clustered_by, self.patients = self._cluster()

    def read(self, run: Run) -> dict[str, _Reading]:
        return {
            name: self.labeller.report(run.reports[name].text, truth)
            for name, truth in self.truths.items()
            if name in run.reports
        }

    def _cluster(self) -> tuple[str | None, dict[str, Hashable]]:
        rows, reports = self.reference.rows, self.run.reports
        for key, stated in (
            ("patient", {name: row.patient for name, row in rows.items()}),
            ("study", {name: row.study for name, row in rows.items()}),
            ("study", {name: reports[name].study for name in self.finished}),
        ):
            values = [value for value in stated.values() if value is not None]
            if values:
                clusters: dict[str, Hashable] = {name: stated.get(name) or (name,) for name in rows}
                return (key if len(set(values)) < len(values) else None), clusters
        return None, {name: name for name in rows}

    def _patients(self, names: Iterable[str]) -> Patients:
        return [self.patients[name] for name in names] if self.clustered_by else None

    def rate(self, flags: Mapping[str, bool | None]) -> Rate:
        return statistics.rates({"": list(flags.values())}, self._patients(flags))[""]

    def agreements(self, findings: Sequence[str], names: Sequence[str]) -> dict[str, Agreement]:
        pairs = {
            finding: [(self.truths[name].labels[finding], self._present(self.reports, name, finding)) for name in names]
            for finding in findings
        }
        return statistics.agreements(pairs, self._patients(names))

    def _present(self, reports: Mapping[str, _Reading], name: str, finding: str) -> bool:
        # A film without a report counts as missed if it has the finding, and as falsely reported if it has not
        # (Schuetz et al., BMJ 2012; 345: e6717).
        if name in reports:
            return bool(reports[name].labels[finding])
        return self.truths[name].labels[finding] is False

    def groups(self, key: str) -> dict[str, dict[str, Agreement]]:
        # Values of the reference override those of the run.
        group, order = _GROUPINGS[key]
        members: dict[str, list[str]] = {name: [] for name in order}
        for name in self.finished:
            value = getattr(self.reference.rows[name], key) or getattr(self.run.reports[name], key)
            members[group(value)].append(name)
        return {label: self.agreements([ANY, *self.scored], names) for label, names in members.items() if names}

    def sides(self) -> dict[str, Rate]:
        flags = {finding: [self._same_side(name, finding) for name in self.finished] for finding in self.scored}
        rates = statistics.rates(flags, self._patients(self.finished))
        return {finding: rate for finding, rate in rates.items() if rate.count}

    def _same_side(self, name: str, finding: str) -> bool | None:
        truth, report = self.truths[name], self.reports[name]
        if not (truth.labels[finding] and finding in truth.sides and finding in report.sides):
            return None
        return truth.sides[finding] == report.sides[finding]

    def disagreement(self, finding: str) -> Disagreement:
        pairs = [(n, self.truths[n].labels[finding], self.reports[n].labels[finding]) for n in self.finished]
        return Disagreement(
            [name for name, truth, report in pairs if truth and not report],
            [name for name, truth, report in pairs if truth is False and report],
            [name for name in self.finished if self._same_side(name, finding) is False],
        )

    def compare(self, others: Mapping[str, _Reading], *, failures: bool) -> Differences:
        names = list(self.truths) if failures else [name for name in self.finished if name in others]
        findings = [*self.scored, ANY]
        differences = statistics.compare(
            {
                (finding, measure): [
                    (
                        self._present(self.reports, name, finding) is condition,
                        self._present(others, name, finding) is condition,
                    )
                    if self.truths[name].labels[finding] is condition
                    else None
                    for name in names
                ]
                for finding in findings
                for measure, condition in _MEASURES.items()
            },
            self._patients(names),
        )
        return {finding: {measure: differences[finding, measure] for measure in _MEASURES} for finding in findings}


_MEASURES: Mapping[Measure, bool] = {"sensitivity": True, "specificity": False}
_GROUPINGS: dict[str, tuple[Callable[[str | None], str], tuple[str, ...]]] = {
    "age": (subgroups.age_group, subgroups.AGE_GROUPS),
    "sex": (subgroups.sex, subgroups.SEXES),
    "view": (subgroups.view, subgroups.VIEWS),
}
