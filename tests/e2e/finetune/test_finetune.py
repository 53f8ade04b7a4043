"""The road from films and reports to a served model, on the demo checkpoint, in a shortened form.

`make demo-finetune` is the long form: it trains until the new wording is learnt.
"""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path

import openai
import pytest

from demo_training import wording
from pedcxr_serve.demo.findings import sample
from tests.benchmarks import transformers_baseline
from tests.benchmarks.transformers_baseline import Question
from tests.drills import finetune_demo
from tests.e2e.served_reports import Study, token_ids
from tests.support.paths import ROOT
from tests.support.servers.local_server import server

PYTHON = finetune_demo.TRAIN / "python"
FILMS, UNSEEN = 320, 20
SHORT = (
    *("--batch", "16", "--accumulate", "1", "--steps", "60", "--learning-rate", "4e-3", "--schedule", "cosine"),
    *("--validation", "0.05", "--save-every", "60"),
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON.exists(), reason="no .venv/train; `make test` creates it"),
]


def test_cases_that_need_trl() -> None:
    """Run `trainer_cases.py`; pytest's `filterwarnings` is reset, because other packages warn there."""
    options = ("-q", "--noconftest", "-o", "filterwarnings=")
    command = [PYTHON, "-m", "pytest", *options, "tests/e2e/finetune/trainer_cases.py"]
    completed = subprocess.run(
        command, cwd=ROOT, env=finetune_demo.environment(), capture_output=True, text=True, check=False
    )
    assert completed.returncode == 0, completed.stdout[-5000:] + completed.stderr[-2000:]
    print(completed.stdout.splitlines()[-1])


def test_a_finetuned_model_is_served(tmp_path: Path) -> None:
    """The served reports of the merged model equal those of transformers, and have the new wording."""
    data = wording.write_films(tmp_path, range(wording.TRAINING, wording.TRAINING + FILMS))
    adapter, merged = tmp_path / "adapter", tmp_path / "merged"
    finetune_demo.finetune(data, adapter, *SHORT)
    finetune_demo.merge(adapter, merged)
    unseen = tmp_path / "unseen"
    unseen.mkdir()
    seeds = range(wording.UNSEEN, wording.UNSEEN + UNSEEN)
    wording.write_films(unseen, seeds)
    studies = [Study(unseen / f"{seed}.png", wording.prompt(seed)) for seed in seeds]
    with server("--model", str(merged)) as ready:
        reports = served(ready.url, studies)
    questions = [Question(str(study.film), study.prompt) for study in studies]
    reference = transformers_baseline.ask(merged, questions)
    assert [token_ids(report) for report in reports] == reference.ids
    assert not any("IMPRESSION" in text for text in reference.texts)
    exact = sum(text == wording.text(sample(seed)) for text, seed in zip(reference.texts, seeds, strict=True))
    print(f"{exact} of {UNSEEN} reports are exactly in the new wording")


def served(url: str, studies: list[Study]) -> list[openai.types.chat.ChatCompletion]:
    async def all_of_them() -> list[openai.types.chat.ChatCompletion]:
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
            name = (await client.models.list()).data[0].id
            requests = (
                client.chat.completions.create(
                    model=name, messages=study.messages(), extra_body={"return_token_ids": True}
                )
                for study in studies
            )
            return await asyncio.gather(*requests)

    return asyncio.run(all_of_them())
