"""Provenance of a report as labelled values, which every format contains."""

from __future__ import annotations

from uuid import UUID, uuid5

from pedcxr_client.reports.report import Report

NAMESPACE = UUID("8f6f2b51-2c0f-5d0a-9d6e-6d0c4a8b1f77")
"""Namespace of the UUIDs that are derived from reports."""
PRIOR = "the text refers to an earlier film or contains a placeholder, but the model had this film only"


def lines(report: Report) -> list[tuple[str, str]]:
    """Return label and value of every part of the provenance except `remarks`. No part identifies a person."""
    indication = report.indication_sha256
    entries = [
        ("model", report.model),
        ("model revision", report.model_revision or "not known"),
        ("prompt profile", f"{report.prompt_profile}/{report.prompt_version}, sha256 {report.prompt_sha256}"),
        ("indication given", "no" if indication is None else f"yes, sha256 {indication}"),
        ("image profile", report.image_profile),
        ("image made by", "; ".join(report.image_how)),
        ("image", f"sha256 {report.image_sha256}"),
        ("written", created_utc(report)),
    ]
    if report.request_id is not None:
        entries.append(("request", report.request_id))
    return entries


def remarks(report: Report) -> list[str]:
    """Return what a reader must know before the text: overridden checks, warnings, comparisons with earlier films.

    The warnings that every film without a header has are left out.
    """
    remarks = [
        f"{'check overridden' if check.allowed else 'warning'}: {check.name}: {check.why}"
        for check in report.checks
        if check.allowed or (check.status == "warn" and check.from_header)
    ]
    return [*remarks, f"warning: {PRIOR}"] if report.mentions_prior else remarks


def origin(report: Report) -> tuple[str, ...]:
    """Return the digests and names that a report depends on. The prompt contains age and sex."""
    values = (
        report.image_sha256, report.model, report.model_revision, report.prompt_sha256, report.prompt,
        report.indication_sha256,
    )  # fmt: skip
    return tuple(value or "" for value in values)


def uuid(report: Report) -> UUID:
    """Return a UUID (RFC 9562, version 5) that is the same for the same report, and another for another report."""
    return uuid5(NAMESPACE, "\0".join((*origin(report), report.text, created_utc(report), report.request_id or "")))


def created_utc(report: Report) -> str:
    """Return the time of completion in UTC, as ISO 8601 with a precision of one second."""
    return report.created.isoformat(timespec="seconds")
