"""Reports read back from JSON lines of this and earlier versions."""

from __future__ import annotations

import json
from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as some

from pedcxr_client import InputError, Report
from pedcxr_client.reports import read_jsonl, to_jsonl
from tests.client.reports.test_formats import DEMO, REPORT, UNKNOWN

# A line as written before `language`, `mentions_prior`, `attempts`, `from_header` and the token counts of `timing`.
OLD = json.loads(to_jsonl(REPORT, film_id="7"))
for key in ("language", "mentions_prior", "attempts", "timing", "disclaimer", "notices"):
    del OLD[key]
for check in OLD["checks"]:
    del check["from_header"]


def without_times(report: Report) -> dict[str, object]:
    return {each.name: getattr(report, each.name) for each in fields(report) if each.name != "timing"}


@pytest.mark.parametrize("report", [REPORT, DEMO, UNKNOWN, replace(REPORT, indication_sha256="cd" * 32)])
def test_report_survives_the_round_trip(report):
    copy = Report.from_dict(json.loads(to_jsonl(report)))
    assert without_times(copy) == without_times(report)
    for name in ("ttft", "tpot", "e2e", "ttft_user", "e2e_user"):
        assert getattr(copy.timing, name) == pytest.approx(getattr(report.timing, name))


@given(some.text(some.characters(exclude_categories=["Cs"])))
def test_any_text_survives_the_round_trip(text):
    assert Report.from_dict(json.loads(to_jsonl(replace(REPORT, text=text)))).text == text


def test_times_are_relative_to_the_start():
    timing = REPORT.as_dict()["timing"]
    assert (timing["scheduled"], timing["sent"], timing["done"]) == (0, 0.2, 1.6)


def test_line_of_an_earlier_version_is_read_and_unknown_keys_are_ignored():
    report = Report.from_dict(OLD | {"new_key": {"a": 1}})
    assert (report.text, report.attempts, report.timing.ttft) == (REPORT.text, 1, None)
    assert report.checks == REPORT.checks


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text": None}, "text: must be a text"),
        ({"text": ["Popescu"]}, "text: must be a text"),
        ({"finish_reason": "length"}, "finish_reason: is 'length'"),
        ({"age": "62"}, "age"),
        ({"age": 5}, "age: must be a text"),
        ({"sex": "male"}, "sex: must be"),
        ({"created": "2026-11-24"}, "created: must be an ISO 8601 time with a time zone"),
        ({"created": "Popescu"}, "created: must be"),
        ({"prompt": None}, "prompt: must be an object"),
        ({"prompt": OLD["prompt"] | {"version": True}}, r"prompt\.version: must be an integer"),
        ({"prompt": OLD["prompt"] | {"version": "1"}}, r"prompt\.version: must be an integer"),
        ({"image": OLD["image"] | {"how": [1]}}, r"image\.how: must be a text"),
        ({"image": OLD["image"] | {"sha256": 7}}, r"image\.sha256: must be a text"),
        ({"checks": ["Popescu"]}, "checks: must be an object"),
        ({"checks": [OLD["checks"][0] | {"status": "Popescu"}]}, r"checks\.status"),
        ({"demo": 1}, "demo: must be true or false"),
        ({"usage": {"prompt_tokens": 1}}, r"usage\.completion_tokens"),
        ({"timing": {"scheduled": "Popescu"}}, r"timing\.scheduled: must be a number"),
    ],
)
def test_wrong_values_are_errors_that_name_the_key_alone(changes, message):
    with pytest.raises(InputError, match=message) as caught:
        Report.from_dict(OLD | changes)
    assert "Popescu" not in str(caught.value)


REQUIRED = ("text", "demo", "model", "created", "finish_reason", "prompt", "image")


@pytest.mark.parametrize("name", list(OLD))
def test_absent_keys(name):
    record = {key: value for key, value in OLD.items() if key != name}
    if name in REQUIRED:
        with pytest.raises(InputError, match=f"^{name}: must be"):
            Report.from_dict(record)
    else:
        assert Report.from_dict(record).text == REPORT.text


def test_lines_of_a_file(tmp_path):
    path = tmp_path / "run.jsonl"
    newer = json.dumps(OLD | {"schema": "pedcxr-report/2"})
    error = json.dumps({"schema": "pedcxr-error/1", "id": "8", "error": {"kind": "failed"}})
    rows = [
        "\ufeff" + json.dumps(OLD),
        "",
        error,
        newer,
        "[]",
        "{}",
        "\ud800".encode(errors="replace").decode(),
        '{"text',
    ]
    path.write_bytes("\n".join(rows).encode())
    lines = list(read_jsonl(path))
    assert [line.number for line in lines] == [1, 3, 4, 5, 6, 7, 8]
    assert (lines[0].film_id, lines[0].error, lines[0].report.text) == ("7", None, REPORT.text)
    assert (lines[1].film_id, lines[1].error, lines[1].report) == ("8", None, None)
    errors = ["another version", "not a JSON object", "must be", "not a JSON object", "is incomplete"]
    assert all(part in line.error for part, line in zip(errors, lines[2:], strict=True))


@pytest.mark.parametrize("name", ["absent.jsonl", "."])
def test_file_that_cannot_be_read_is_an_input_error(tmp_path, name):
    with pytest.raises(InputError, match="the run: "):
        list(read_jsonl(tmp_path / name))
