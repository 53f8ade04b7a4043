"""The types that users of the public API see. mypy checks this file in `make lint`; nothing imports or runs it."""

from __future__ import annotations

import io
import os
from collections.abc import AsyncGenerator, Generator, Iterator
from datetime import date
from pathlib import Path
from typing import assert_type

import numpy as np
import openai
from PIL import Image
from prometheus_client import CollectorRegistry
from pydicom import Dataset, dcmread

from pedcxr_client import (
    DISCLAIMER,
    Age,
    AsyncClient,
    AsyncReportStream,
    BlockedFilm,
    Check,
    Client,
    EncodedImage,
    FilmRequest,
    Hook,
    Inspection,
    Outcome,
    PedcxrError,
    Preparation,
    RateLimited,
    Report,
    ReportStream,
    RequestError,
    Result,
    ServedModel,
    Timeouts,
    Timing,
    TruncatedReport,
    Usage,
    inspect,
)
from pedcxr_client.metrics import Metrics, Pushgateway, serving
from pedcxr_client.reports import Identity, identity_of, to_csv, to_fhir, to_json, to_jsonl, to_sr, to_text


def configure(metrics: Hook) -> Client:
    return Client(
        "https://reports.example.org/v1",
        api_key="key",
        model="medgemma-4b-it-ped",
        timeouts=Timeouts(connect=2, write=30, gap=60, total=300),
        retries=0,
        insecure_http=False,
        metrics=metrics,
    )


def report(client: Client) -> None:
    with client as same:
        assert_type(same, Client)
    result = client.report("film.dcm", age=Age(5, "Y"), sex="M", max_tokens=300, allow=["age"], assume_chest=True)
    client.report("film.dcm", default_age="5y", default_sex="F", views="frontal")
    client.report("film.dcm", views="lateral")  # type: ignore[arg-type]
    client.report("film.dcm", key="id")  # type: ignore[call-arg]
    assert_type(Age.between(date(2018, 5, 4), date(2024, 1, 2)), Age)
    assert_type(result, Report)
    assert_type(result.text, str)
    assert_type(result.findings, str | None)
    assert_type(result.impression, str | None)
    assert_type(result.age, Age | None)
    assert_type(result.checks, tuple[Check, ...])
    assert_type(result.usage, Usage | None)
    assert_type(result.timing, Timing)
    assert_type(result.timing.ttft, float | None)
    assert_type(result.as_dict(), dict[str, object])
    assert_type(DISCLAIMER, str)
    assert_type(client.payload("film.png", stream=False), bytes)
    assert_type(client.model(), ServedModel)
    assert_type(client.model().image_size, tuple[int, int] | None)
    assert_type(client.openai, openai.OpenAI)


def every_kind_of_film(client: Client, encoded: EncodedImage) -> None:
    path: os.PathLike[str] = Path("film.dcm")
    client.report(path, age="5y")
    client.report(b"bytes of a file")
    client.report(io.BytesIO(b"bytes of a file"))
    client.report(Image.new("L", (512, 512)))
    client.report(bytearray(b"bytes of a file"))
    client.report(memoryview(b"bytes of a file"))
    client.report(Dataset())
    client.report(dcmread("film.dcm"))
    client.report(np.zeros((512, 512), np.uint8))
    client.report(np.zeros((512, 512), np.int16))
    client.report(np.zeros((512, 512), np.uint16), preparation=Preparation(resize="model"))
    client.report(encoded)
    client.report(3.5)  # type: ignore[arg-type]
    client.report("film.png", sex="x")  # type: ignore[arg-type]
    client.report("film.png", tokens=3)  # type: ignore[call-arg]


def inspecting(film: Dataset) -> None:
    inspection = inspect(film, age="5y", sex="F", preparation=Preparation(resize="model"))
    assert_type(inspection, Inspection)
    assert_type(inspection.file, str | None)
    assert_type(inspection.checks, tuple[Check, ...])
    assert_type(inspection.image, EncodedImage | None)
    assert_type(inspection.pixels, Image.Image | None)
    assert_type(inspection.verdict, str)
    inspect(3.5)  # type: ignore[arg-type]
    inspect(film, tokens=3)  # type: ignore[call-arg]


def stream(client: Client) -> None:
    with client.stream("film.png", age="18m") as pieces:
        assert_type(pieces, ReportStream)
        assert_type(iter(pieces), Iterator[str])
        for piece in pieces:
            assert_type(piece, str)
        assert_type(pieces.report, Report)


def many(client: Client) -> None:
    requests = (FilmRequest(path, age="5y", key=path.stem) for path in Path().glob("*.dcm"))
    results = client.reports(requests, concurrency=32)
    assert_type(results, Generator[Result, None, None])
    for result in results:
        assert_type(result.request, FilmRequest)
        assert_type(result.report, Report | None)
        assert_type(result.error, PedcxrError | None)


async def asynchronous() -> None:
    async with AsyncClient() as client:
        assert_type(await client.report("film.png"), Report)
        assert_type(await client.payload("film.png"), bytes)
        assert_type(await client.model(), ServedModel)
        assert_type(client.openai, openai.AsyncOpenAI)
        assert_type(client.reports([FilmRequest("film.png")]), AsyncGenerator[Result, None])
        async with client.stream("film.png") as pieces:
            assert_type(pieces, AsyncReportStream)
            async for piece in pieces:
                assert_type(piece, str)
            assert_type(pieces.report, Report)


def errors(client: Client) -> None:
    try:
        client.report("film.png")
    except BlockedFilm as error:
        assert_type(error.checks, tuple[Check, ...])
    except RateLimited as error:
        assert_type(error.retry_after, float | None)
    except TruncatedReport as error:
        assert_type(error.text, str)
        assert_type(error.finish_reason, str | None)
    except RequestError as error:
        assert_type(error.status_code, int | None)
        assert_type(error.request_id, str | None)
        assert_type(error.code, str | None)
        assert_type(error.reason, str | None)
        assert_type(error.timing, Timing | None)
    except PedcxrError as error:
        assert_type(error.exit_code, int)
        assert_type(error.outcome, str)


def formats(result: Report) -> None:
    identity = identity_of("film.dcm")
    assert_type(identity, Identity)
    assert_type(to_sr(result, identity=identity), bytes)
    assert_type(to_text(result), str)
    assert_type(to_json(result), str)
    assert_type(to_jsonl(result), str)
    assert_type(to_csv(result), str)
    assert_type(to_fhir(result, subject="Patient/7"), str)


class CountingHook:
    """Satisfies `Hook` without inheriting from it."""

    def __init__(self) -> None:
        self.outcomes: list[str] = []

    def started(self) -> None: ...

    def retrying(self, error: RequestError, wait: float) -> None: ...

    def finished(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome.name)


def metrics() -> None:
    registry = CollectorRegistry()
    configure(Metrics(registry=registry))
    configure(CountingHook())
    with serving(registry) as address:
        assert_type(address, str)
    Pushgateway(url="http://gateway:9091").push(registry)
