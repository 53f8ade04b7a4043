"""Where a report comes from, in words: what every format says beside the text. Pure."""

from __future__ import annotations

from pedcxr_client.reports.report import Report


def lines(report: Report) -> list[tuple[str, str]]:
    """Label and value of all that tells one report's origin from another's; nothing that identifies a person."""
    indication = report.indication_sha256
    known = [
        ("model", report.model),
        ("model revision", report.model_revision or "not known"),
        ("prompt profile", f"{report.prompt_profile}/{report.prompt_version}, sha256 {report.prompt_sha256}"),
        ("indication given", "no" if indication is None else f"yes, sha256 {indication}"),
        ("image profile", report.image_profile),
        ("image made by", "; ".join(report.image_how)),
        ("image", f"sha256 {report.image_sha256}"),
        ("written", moment(report)),
    ]
    if report.request_id is not None:
        known.append(("request", report.request_id))
    return known + [("check overridden", f"{check.name}: {check.why}") for check in report.checks if check.allowed]


def moment(report: Report) -> str:
    """When it was finished, in UTC to the second, as ISO 8601."""
    return report.created.isoformat(timespec="seconds")
