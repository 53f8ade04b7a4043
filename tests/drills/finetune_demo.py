"""``python -m tests.drills.finetune_demo``: teach the demo checkpoint another wording, and serve the result.

1. Draw films with reports in another wording (`demo_training.wording`).
2. `pedcxr-serve finetune` trains an adapter, and `pedcxr-serve merge` merges it, both in .venv/train.
3. `pedcxr-serve start` serves the merged checkpoint, which reports films that the training did not see.
4. Another server serves the adapter beside the base: the tenant ``ward`` gets its own wording, ``clinic`` the base's.
5. Both servers' reports are compared with those of transformers, with the merged checkpoint and with PEFT's adapter.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from demo_training import wording
from pedcxr_client import AsyncClient
from pedcxr_serve.demo import CHECKPOINT, drawing, expected_report
from pedcxr_serve.demo.findings import sample
from pedcxr_serve.gateway.auth import api_keys
from tests.benchmarks import transformers_baseline
from tests.benchmarks.transformers_baseline import Question
from tests.support.paths import ROOT
from tests.support.servers.local_server import server

TRAIN = ROOT / ".venv/train/bin"
FOLDER = Path(".demo-finetune")
OPTIONS = (
    *("--batch", "16", "--accumulate", "1", "--steps", "400", "--learning-rate", "3e-3"),
    *("--schedule", "cosine", "--validation", "0.03", "--save-every", "100"),
)
"""Of `pedcxr-serve finetune`: larger steps than the recipe's, because the demo checkpoint is 3,000 times smaller."""


def main() -> None:
    """Run the demonstration and print the counts of exact reports."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=FOLDER)
    parser.add_argument("--films", type=int, default=2000)
    parser.add_argument("--unseen", type=int, default=100)
    parser.add_argument("--compared", type=int, default=50, help="unseen films that transformers reports too")
    parser.add_argument("--reuse", action="store_true", help="serve what an earlier run trained and merged in --out")
    args = parser.parse_args()
    films, adapter, merged = (args.out / name for name in ("films", "adapter", "merged"))
    start = time.monotonic()
    if not args.reuse:
        shutil.rmtree(args.out, ignore_errors=True)
        films.mkdir(parents=True)
        data = wording.write_films(films, range(wording.TRAINING, wording.TRAINING + args.films))
        _say(start, f"drew {args.films} films")
        finetune(data, adapter, *OPTIONS)
        _say(start, f"trained {adapter}")
        merge(adapter, merged)
        _say(start, f"merged into {merged}")
    cases = [sample(seed) for seed in range(wording.UNSEEN, wording.UNSEEN + args.unseen)]
    new, old = ([text(case) for case in cases] for text in (wording.text, expected_report.text))
    with server("--model", str(merged)) as ready:
        merged_texts = asyncio.run(reports(ready.url, args.unseen))
    _say(start, f"merged checkpoint: {_equal(merged_texts, new)} unseen films reported in the new wording, exactly")
    texts = serve_beside_the_base(adapter, args.out, args.unseen)
    _say(start, f"adapter beside its base, tenant ward: {_equal(texts['ward'], new)} exact")
    _say(start, f"adapter beside its base, tenant clinic: {_equal(texts['clinic'], old)} exact")
    questions = _questions(args.out / "unseen", args.compared)
    reference = transformers_baseline.ask(merged, questions).texts
    _say(start, f"merged, served and in transformers: {_equal(reference, merged_texts)} equal")
    reference = transformers_baseline.ask(CHECKPOINT, questions, adapter=adapter, python=TRAIN / "python").texts
    _say(start, f"adapter, served and in transformers with PEFT: {_equal(reference, texts['ward'])} equal")


def _say(start: float, text: str) -> None:
    print(f"[{time.monotonic() - start:4.0f} s] {text}", flush=True)


def finetune(data: Path, out: Path, *options: str) -> None:
    """Run `pedcxr-serve finetune` on the demo checkpoint in .venv/train."""
    _run("finetune", str(data), "--base", "demo", "--out", str(out), *options)


def environment() -> dict[str, str]:
    """Return the environment of programs in .venv/train."""
    # Two threads that wait by spinning slow each other down when other programs use the cores.
    variables = os.environ | {"OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    variables.pop("PYTHONDONTWRITEBYTECODE", None)  # without bytecode, every start compiles torch and trl
    return variables


def merge(adapter: Path, out: Path, *options: str) -> None:
    """Run `pedcxr-serve merge` in .venv/train."""
    _run("merge", str(adapter), "--out", str(out), *options)


def _run(*words: str) -> None:
    subprocess.run([TRAIN / "python", "-W", "ignore", "-m", "pedcxr_serve", *words], check=True, env=environment())


def serve_beside_the_base(adapter: Path, folder: Path, count: int) -> dict[str, list[str]]:
    """Return the reports of unseen films for each of two tenants, one with the adapter and one without."""
    tenants, config = folder / "tenants.toml", folder / "serve.toml"
    tenants.unlink(missing_ok=True)
    tenants.write_text('[tenant.ward]\nmodels = ["ward"]\ndefault_model = "ward"\n[tenant.clinic]\n')
    keys = {name: api_keys.new(tenants, name) for name in ("ward", "clinic")}
    config.write_text(f'[adapters.ward]\npath = "{adapter.resolve()}"\ntenants = ["ward"]\n')
    with server("--config", str(config), "--tenants", str(tenants)) as ready:
        return {name: asyncio.run(reports(ready.url, count, keys[name])) for name in ("ward", "clinic")}


async def reports(url: str, count: int, key: str | None = None) -> list[str]:
    """Return the reports of unseen films, requested with 16 in flight."""
    slots = asyncio.Semaphore(16)

    async with AsyncClient(url, api_key=key) as client:

        async def report(seed: int) -> str:
            case = sample(seed)
            async with slots:
                film = drawing.encode_png(drawing.render(case, seed))
                return (await client.report(film, age=case.age, sex=case.sex)).text

        return list(await asyncio.gather(*map(report, range(wording.UNSEEN, wording.UNSEEN + count))))


def _questions(folder: Path, count: int) -> list[Question]:
    folder.mkdir(exist_ok=True)
    seeds = range(wording.UNSEEN, wording.UNSEEN + count)
    wording.write_films(folder, seeds)
    return [Question(str(folder / f"{seed}.png"), wording.prompt(seed)) for seed in seeds]


def _equal(some: Sequence[str], others: Sequence[str]) -> str:
    """Return how many texts are equal, of those that both sides have."""
    pairs = list(zip(some, others, strict=False))
    return f"{sum(one == other for one, other in pairs)} of {len(pairs)}"


if __name__ == "__main__":
    main()
