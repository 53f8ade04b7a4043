"""Cost of adapters on real vLLM: start-up, and tokens per second of adapters and base in one server.

``make drill-adapters``: one server without adapters, then one with two. The adapters have random weights, so reports
are compared in tokens, at most `TOKENS` each. Rounds of the loads alternate.
"""

from __future__ import annotations

import asyncio
import base64
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import openai

from pedcxr_client.request import prompts
from pedcxr_serve.demo import drawing
from pedcxr_serve.demo.findings import sample
from tests.support import lora_adapter
from tests.support.servers.local_server import LocalServer, server

BASE, ADAPTERS = "pedcxr-demo", ("north", "south")
MODELS = (BASE, *ADAPTERS)
FILMS, IN_FLIGHT, TOKENS, ROUNDS = 150, 32, 40, 2
_SEED = 9_500_000

Load = tuple[str, ...]
"""The models of a load; film n goes to model n, counted round and round."""


def main() -> None:
    """Print one line per server and load, and how many reports of a mixed batch equal those of each model alone."""
    films = [_messages(seed) for seed in range(_SEED, _SEED + FILMS)]
    with server() as ready:
        alone, _ = _measure(ready, [(BASE,)], films)
        start = ready.seconds
    without = alone[BASE,]
    print(f"without adapters: ready after {start:.1f} s; {without:.0f} tokens/s", flush=True)
    with tempfile.TemporaryDirectory(prefix="adapters-") as folder:
        config = Path(folder, "serve.toml")
        for seed, name in enumerate(ADAPTERS):
            lora_adapter.make(Path(folder, name), seed=seed)
        config.write_text("".join(f'[adapters.{name}]\npath = "{folder}/{name}"\n' for name in ADAPTERS))
        with server("--config", str(config)) as ready:
            print(f"with {len(ADAPTERS)} adapters: ready after {ready.seconds:.1f} s ({ready.seconds - start:+.1f} s)")
            speeds, texts = _measure(ready, [(name,) for name in MODELS] + [MODELS], films)
    base = speeds[BASE,]
    for load, speed in speeds.items():
        label = " + ".join(load)
        ratios = f"{speed / base:.2f} of the base beside adapters, {speed / without:.2f} of the base without"
        print(f"  {label:<28} {speed:5.0f} tokens/s: {ratios}")
    equal = sum(texts[MODELS][film] == texts[MODELS[film % len(MODELS)],][film] for film in range(FILMS))
    print(f"  mixed batch: {equal} of {FILMS} reports equal those of the model alone")


def _measure(
    ready: LocalServer, loads: Sequence[Load], films: Sequence[list]
) -> tuple[dict[Load, float], dict[Load, list[str]]]:
    """Return the median tokens per second, and the last texts, of each load; the first round is not counted."""
    speeds: dict[Load, list[float]] = {load: [] for load in loads}
    texts: dict[Load, list[str]] = {}
    for round_number in range(ROUNDS + 1):
        for load in loads:
            speed, texts[load] = asyncio.run(_run(ready.url, load, films))
            if round_number:
                speeds[load].append(speed)
    return {load: statistics.median(values) for load, values in speeds.items()}, texts


async def _run(url: str, models: Load, films: Sequence[list]) -> tuple[float, list[str]]:
    gate = asyncio.Semaphore(IN_FLIGHT)
    direct = openai.DefaultAsyncHttpxClient(trust_env=False)  # no proxy for a server on this machine
    async with openai.AsyncOpenAI(
        base_url=url, api_key="none", max_retries=0, timeout=300, http_client=direct
    ) as client:

        async def one(number: int) -> tuple[int, str]:
            async with gate:
                answer = await client.chat.completions.create(
                    model=models[number % len(models)], messages=films[number], max_tokens=TOKENS
                )
                assert answer.usage is not None
                return answer.usage.completion_tokens, answer.choices[0].message.content or ""

        start = time.perf_counter()
        reports = await asyncio.gather(*map(one, range(len(films))))
        seconds = time.perf_counter() - start
    return sum(tokens for tokens, _ in reports) / seconds, [text for _, text in reports]


def _messages(seed: int) -> list:
    case = sample(seed)
    url = "data:image/png;base64," + base64.b64encode(drawing.encode_png(drawing.render(case, seed))).decode()
    return prompts.messages(prompts.card(case.age, case.sex), url)


if __name__ == "__main__":
    main()
