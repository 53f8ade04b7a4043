"""The commands ``pedcxr-serve finetune`` and ``pedcxr-serve merge``: options, order of the steps, and what is recorded.

This module imports neither torch nor trl: an error in the data is found before they load.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import platform
import shutil
import sys
import tempfile
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pedcxr_client.cli import options as film_options
from pedcxr_client.errors import ConfigurationError, PedcxrError
from pedcxr_client.request.film_request import FilmRequest
from pedcxr_client.types import __version__
from pedcxr_serve.checkpoint import download, inspect, revision
from pedcxr_serve.errors import ConfigError, DataError, ServeError, TrainingError
from pedcxr_serve.finetune import checkpoint_files, dataset, exhaustion, model_card, run_folder, table
from pedcxr_serve.finetune.dataset import Dataset
from pedcxr_serve.finetune.recipes import MODULES, RECIPES, Recipe
from pedcxr_serve.finetune.table import Row

PACKAGES = ("torch", "transformers", "trl", "peft", "datasets", "accelerate")
INTERRUPTED = 130
"""The exit code after Ctrl-C, as of a shell."""

_INSTALL = "pip install 'pedcxr[train]'"
_RECIPE_OPTIONS = (
    ("--learning-rate", film_options.positive(float), "peak learning rate"),
    ("--epochs", film_options.positive(float), "passes over the films"),
    ("--steps", film_options.positive(int), "updates of the weights, instead of --epochs"),
    ("--batch", film_options.positive(int), "films per step on the device"),
    ("--accumulate", film_options.positive(int), "steps per update of the weights"),
    ("--rank", film_options.positive(int), "rank of LoRA"),
    ("--alpha", film_options.positive(int), "alpha of LoRA; the scale is alpha / rank"),
    ("--seed", int, "seed of the split, the order and LoRA's start"),
)


def add_finetune_options(command: argparse.ArgumentParser) -> None:
    """Add the options of ``pedcxr-serve finetune``."""
    command.add_argument(
        "data", type=Path, metavar="DATA",
        help="a manifest (CSV or JSONL: path, report; optionally age, sex, split, patient, ...), or a folder of films "
        "with a .txt file beside each",
    )  # fmt: skip
    command.add_argument("--base", required=True, metavar="MODEL", help="the model: demo, a folder, or a hub id")
    command.add_argument("--revision", help="branch, tag or commit of a hub id")
    command.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder; the same continues")
    group = command.add_argument_group("training (defaults: of the recipe)")
    group.add_argument(
        "--recipe", choices=tuple(RECIPES), default="text",
        help="text: LoRA on the text model, served beside its base; card: as MedGemma-4B-IT-Ped was trained; full: all "
        "weights (default: %(default)s)",
    )  # fmt: skip
    for name, kind, text in _RECIPE_OPTIONS:
        group.add_argument(name, type=kind, metavar="N", help=text)
    group.add_argument("--dropout", type=_share, metavar="N", help="dropout of LoRA, 0 to 1")
    group.add_argument("--schedule", choices=("linear", "cosine", "constant"), help="course of the learning rate")
    group.add_argument("--modules", type=_modules, metavar="NAME,...", help=f"what is trained: {', '.join(MODULES)}")
    group.add_argument("--precision", choices=("auto", "bf16", "float32"), help="of the computation")
    group.add_argument(
        "--gradient-checkpointing", action=argparse.BooleanOptionalAction, default=None,
        help="compute activations twice instead of storing them: less memory, a third more time",
    )  # fmt: skip
    group.add_argument(
        "--deterministic", action="store_true", default=None,
        help="on a GPU, use only kernels that give the same digits in each run: slower; a CPU needs no option",
    )  # fmt: skip
    group.add_argument("--quantize", action="store_true", default=None, help="base weights in 4 bits (QLoRA; GPU)")
    group.add_argument(
        "--validation", type=_share, metavar="SHARE", help="share of the patients, if DATA states no split"
    )
    group.add_argument(
        "--save-every", type=film_options.positive(int), default=0, metavar="N",
        help="updates between two states to continue from (default: one state per epoch)",
    )  # fmt: skip
    data = command.add_argument_group("films and prompts; use the same when the model is served")
    film_options.add_film_options(data, several=True)  # type: ignore[arg-type]
    film_options.add_prompt_options(data)  # type: ignore[arg-type]
    data.add_argument("--allow-outside", action="store_true", help="allow films outside the manifest's folder")
    data.add_argument("--skip-blocked", action="store_true", help="leave out films that a check blocks")
    data.add_argument("--allow-identifiers", action="store_true", help="accept DICOM headers that identify a patient")
    command.add_argument("--dry-run", action="store_true", help="check data and base, print the counts and stop")


def add_merge_options(command: argparse.ArgumentParser) -> None:
    """Add the options of ``pedcxr-serve merge``."""
    command.add_argument("adapter", type=Path, metavar="ADAPTER", help="the folder that finetune or PEFT wrote")
    command.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder")
    command.add_argument("--base", metavar="MODEL", help="the base model (default: what the adapter records)")
    command.add_argument("--revision", help="branch, tag or commit of a hub id")
    command.add_argument(
        "--dtype", choices=("bfloat16", "float32"), help="of the merged weights (default: as the base)"
    )


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError("must be from 0 to below 1")
    return value


def _modules(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(text.split(",")))
    if not set(names) <= set(MODULES):
        raise argparse.ArgumentTypeError(f"choose from {', '.join(MODULES)}, separated by commas")
    return names


def recipe_of(args: argparse.Namespace) -> Recipe:
    """Return the recipe with the values that the options change."""
    names = set(Recipe.__dataclass_fields__) - {"name"}
    changes = {name: getattr(args, name) for name in names if getattr(args, name, None) is not None}
    return replace(RECIPES[args.recipe], **changes)


def finetune(args: argparse.Namespace) -> int:
    """Check the data, train, and write adapter or checkpoint, record and card; return the exit code."""
    recipe = recipe_of(args)
    base = download.resolve(args.base, args.revision, setting="--base")
    checkpoint_files.require_base(base)
    try:
        request = _request(args)
        rows = table.read(args.data, allow_outside=args.allow_outside)
        if args.dry_run:
            with tempfile.TemporaryDirectory() as folder:
                data = _prepare(args, rows, recipe, request, Path(folder))
            print(f"{model_card.summary(data)}\nserving: {recipe.serving}")
            return 0
        _require_packages()
        with run_folder.opened(args.out):
            return _train(args, base, rows, recipe, request)
    except ConfigurationError as error:
        raise ConfigError(str(error)) from error
    except PedcxrError as error:
        raise DataError(str(error)) from error
    except OSError as error:
        if not (reason := exhaustion.disk_reason(error)):
            raise
        where = tempfile.gettempdir() if args.dry_run else f"--out {args.out}"
        raise TrainingError(
            f"{where}: cannot be written ({reason}). Free some disk space and start the same command again."
        ) from error


def _train(args: argparse.Namespace, base: Path, rows: list[Row], recipe: Recipe, request: Any) -> int:
    data = _prepare(args, rows, recipe, request, args.out / "films")
    print(f"{model_card.summary(data)}\nserving: {recipe.serving}", file=sys.stderr)
    run = _run(args, base, data, recipe)
    run_folder.begin(args.out, run)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        # Imported here because torch and trl take 10 s to load, and other errors are known before.
        from pedcxr_serve.finetune import result, trainer

        trained = trainer.train(args.out, base, data, recipe, save_every=args.save_every)
    except KeyboardInterrupt:
        print("pedcxr-serve: interrupted; the same command continues", file=sys.stderr)
        return INTERRUPTED
    result.publish(args.out, base, run, trained)
    print(model_card.next_steps(args.out, recipe, args.base))
    return 0


def _prepare(args: argparse.Namespace, rows: list[Row], recipe: Recipe, request: Any, films: Path) -> Dataset:
    from tqdm import tqdm

    with tqdm(total=len(rows), desc="preparing films", file=sys.stderr, disable=not sys.stderr.isatty()) as bar:
        return dataset.prepare(
            args.data,
            rows,
            request,
            films,
            validation=recipe.validation,
            seed=recipe.seed,
            skip_blocked=args.skip_blocked,
            allow_identifiers=args.allow_identifiers,
            on_film=bar.update,
        )


def _request(args: argparse.Namespace) -> Any:
    """Return a function that makes the client's request of a row, as `pedcxr batch` makes it."""
    template = film_options.film_request("", args, several=True, prompt_profile=film_options.prompt_profile(args))
    template.caller_facts()  # raises here if an option is wrong for every film

    def request(row: Row) -> FilmRequest:
        entry = row.entry
        return replace(
            template,
            film=entry.path,
            age=entry.age or template.age,
            sex=entry.sex or template.sex,
            assume_chest=entry.assume_chest or template.assume_chest,
            allow=(*template.allow, *entry.allow),
        )

    return request


def _require_packages() -> None:
    names = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if names:
        raise ConfigError(f"fine-tuning needs {', '.join(names)}. Install the extra: {_INSTALL}")


def _run(args: argparse.Namespace, base: Path, data: Dataset, recipe: Recipe) -> dict[str, Any]:
    counts = {
        "train": len(data.train),
        "validation": len(data.validation),
        "test": data.test,
        "patients": data.patients,
        "skipped": data.skipped,
    }
    return {
        "base": {"model": args.base, "revision": revision.of(base)},
        "recipe": asdict(recipe),
        "save_every": args.save_every,
        "data": {
            "sha256": data.sha256,
            **counts,
            "notes": list(data.notes),
            "prompt_profile": data.prompt_profile,
            "preparation": data.preparation,
            "allowed_checks": sorted(args.allow),
        },
        "versions": {"pedcxr": __version__, "python": platform.python_version()}
        | {name: version(name) for name in PACKAGES},
    }


def merge(args: argparse.Namespace) -> int:
    """Merge an adapter into its base and print the state of the result; return the exit code."""
    if args.out.exists() and (not args.out.is_dir() or any(args.out.iterdir())):
        raise ConfigError(f"--out {args.out}: exists. Give a new folder.")
    _require_packages()
    from pedcxr_serve.finetune import merging

    staged = args.out.with_name(f".{args.out.name}.{hashlib.sha256(os.urandom(8)).hexdigest()[:8]}")
    try:
        print(merging.merge(args.adapter, staged, base=args.base, revision=args.revision, dtype=args.dtype))
        staged.replace(args.out)
    except Exception as error:  # PyTorch and safetensors have no common class for these
        if reason := exhaustion.disk_reason(error) or (str(error) if isinstance(error, OSError) else ""):
            raise ServeError(
                f"--out {args.out}: cannot be written ({reason}); nothing is left of it. Free some disk space, or give "
                "another folder, and start again."
            ) from error
        if exhaustion.is_memory(error):
            raise ServeError(
                "out of memory. A merge takes 4 bytes per weight of the model in main memory; use a machine with more."
            ) from error
        raise
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    print(inspect.table(inspect.inspect(args.out)))
    return 0
