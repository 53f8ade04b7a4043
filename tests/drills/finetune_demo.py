"""``python -m tests.drills.finetune_demo``: teach the demo checkpoint another wording, and serve the result.

1. Draw films with reports in another wording (`demo_training.wording`).
2. `pedcxr-serve finetune` trains an adapter, and `pedcxr-serve merge` merges it, both in .venv/train.
3. `pedcxr-serve start` serves the merged checkpoint, which reports films that the training did not see.
4. Another server serves the adapter beside the base: the tenant ``ward`` gets its own wording, ``clinic`` the base's.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from demo_training import wording
from pedcxr_client import AsyncClient
from pedcxr_serve.demo import drawing, expected_report
from pedcxr_serve.demo.findings import Case, sample
from pedcxr_serve.gateway.auth import api_keys
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
    args = parser.parse_args()
    shutil.rmtree(args.out, ignore_errors=True)
    films, adapter, merged = (args.out / name for name in ("films", "adapter", "merged"))
    films.mkdir(parents=True)
    start = time.monotonic()
    data = wording.write_films(films, range(wording.TRAINING, wording.TRAINING + args.films))
    _say(start, f"drew {args.films} films")
    finetune(data, adapter, *OPTIONS)
    _say(start, f"trained {adapter}")
    merge(adapter, merged)
    _say(start, f"merged into {merged}")
    with server("--model", str(merged)) as ready:
        exact = asyncio.run(count_exact(ready.url, wording.text, args.unseen))
    _say(start, f"merged checkpoint: {exact} of {args.unseen} unseen films reported in the new wording, exactly")
    for tenant, count in serve_beside_the_base(adapter, args.out, args.unseen).items():
        _say(start, f"adapter beside its base, tenant {tenant}: {count} of {args.unseen} exact")


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


def serve_beside_the_base(adapter: Path, folder: Path, count: int) -> dict[str, int]:
    """Return for each of two tenants how many reports are exactly in its wording."""
    tenants, config = folder / "tenants.toml", folder / "serve.toml"
    tenants.write_text('[tenant.ward]\nmodels = ["ward"]\ndefault_model = "ward"\n[tenant.clinic]\n')
    keys = {name: api_keys.new(tenants, name) for name in ("ward", "clinic")}
    config.write_text(f'[adapters.ward]\npath = "{adapter.resolve()}"\ntenants = ["ward"]\n')
    with server("--config", str(config), "--tenants", str(tenants)) as ready:
        return {
            "ward": asyncio.run(count_exact(ready.url, wording.text, count, keys["ward"])),
            "clinic": asyncio.run(count_exact(ready.url, expected_report.text, count, keys["clinic"])),
        }


async def count_exact(url: str, expected: Callable[[Case], str], count: int, key: str | None = None) -> int:
    """Request reports of unseen films, 16 in flight, and return how many equal the expected text."""
    slots = asyncio.Semaphore(16)

    async with AsyncClient(url, api_key=key) as client:

        async def is_exact(seed: int) -> bool:
            case = sample(seed)
            async with slots:
                film = drawing.encode_png(drawing.render(case, seed))
                report = await client.report(film, age=case.age, sex=case.sex)
            return report.text == expected(case)

        return sum(await asyncio.gather(*map(is_exact, range(wording.UNSEEN, wording.UNSEEN + count))))


if __name__ == "__main__":
    main()
