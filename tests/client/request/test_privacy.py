"""Logs of every level, reprs and errors contain no patient data."""

from __future__ import annotations

import logging

import pytest

from pedcxr_client import Client, FilmRequest, InputError, RequestError
from pedcxr_client.films.film import prepare
from tests.support.servers.fake_engine import Answer

SECRETS = ("Popescu", "pneumothorax", "13-month-old", "iVBOR", "key-secret")


@pytest.mark.parametrize("answer", [Answer(), Answer(finish="length"), Answer(cut_after=1), Answer(status=400)])
def test_logs_and_errors_contain_no_patient_data(engine, film, twin, tmp_path, caplog, answer):
    caplog.set_level(logging.DEBUG)
    for name in ("openai", "httpx2", "httpcore2"):
        caplog.set_level(logging.DEBUG, logger=name)
    path = tmp_path / "Popescu Ana.png"
    path.write_bytes(film)
    pieces = ("A left pneumothorax.",) * 2
    engine.answer = Answer(**{**vars(answer), "pieces": pieces})
    lines = []
    try:
        lines.append(repr(twin.report(engine.url, path, age="13m", client={"api_key": "key-secret"})))
    except RequestError as error:
        lines += [repr(error), str(error), repr(error.__cause__)]
    own = [record for record in caplog.records if not record.name.startswith("uvicorn")]
    lines += [record.getMessage() for record in own]
    assert len(own) > 3, "the SDK logs at this level"
    for line in lines:
        assert not any(secret in line for secret in SECRETS), line


def test_reprs_contain_no_patient_data(engine, film):
    with Client(engine.url, api_key="key-secret") as client, client.stream(film, age="13m") as stream:
        list(stream)
        call = stream._stream._call
        values = (stream.report, prepare(film), client, client._connection, client._connection.settings, stream)
        for value in (*values, stream._stream, stream._stream._request, call, call._prepared):
            assert not any(secret in repr(value) for secret in SECRETS)
            assert "lungs" not in repr(value)


@pytest.mark.parametrize("content", [None, b"", b"no film", b"\0" * 128 + b"DICM", b"\x89PNG\r\n\x1a\n"])
def test_errors_of_films_contain_no_path(engine, twin, tmp_path, content):
    path = tmp_path / "Popescu_1840312.dcm"
    if content is not None:
        path.write_bytes(content)
    [result] = twin.reports(engine.url, [FilmRequest(path)])
    assert isinstance(result.error, InputError)
    assert str(result.error).startswith("the film")
    assert not any(word in repr(result.error) for word in ("Popescu", "1840312", str(tmp_path)))
