"""Train with TRL's SFTTrainer: loss on the report only, image tokens in both directions, states that are complete.

TRL 1.16 and PEFT 0.21 do the work. This module chooses their settings, compares their first batch with what a server
gets, and turns Ctrl-C, a full disk and a lack of memory into a state from which the same command continues.
"""

from __future__ import annotations

import math
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import datasets
import torch
from peft import LoraConfig
from PIL import Image
from safetensors import SafetensorError
from transformers import AutoProcessor, Gemma3ForConditionalGeneration, PrinterCallback, TrainerCallback
from transformers.utils import logging
from trl import SFTConfig, SFTTrainer

from pedcxr_client.request import prompts
from pedcxr_serve.errors import ConfigError, TrainingError
from pedcxr_serve.finetune import exhaustion, run_folder
from pedcxr_serve.finetune.dataset import Dataset, Example
from pedcxr_serve.finetune.metrics import MetricsFile
from pedcxr_serve.finetune.recipes import Recipe

_STATES_KEPT = 2


@dataclass(frozen=True, slots=True)
class Result:
    """A complete training: the model (an adapter or all weights), the losses, and the number of trained parameters."""

    model: Any
    steps: int
    losses: dict[str, float]
    trained: int
    parameters: int
    seconds: float
    device: str


def train(folder: Path, base: Path, dataset: Dataset, recipe: Recipe, *, save_every: int) -> Result:
    """Train, or continue from the newest state in ``folder``.

    Args:
        folder: The output folder, which holds the prepared films.
        base: The folder of the base checkpoint.
        save_every: Number of updates between two states; 0 writes one per epoch.

    Raises:
        TrainingError: Memory or disk space is exhausted, or the loss is not finite.
        KeyboardInterrupt: After Ctrl-C or SIGTERM, when the state is written.
    """
    device = _device(recipe)
    state = run_folder.last_state(folder)
    run_folder.keep_metrics_until(folder / "metrics.jsonl", _step_of(state))
    start = time.monotonic()
    with _memory_advice(recipe), MetricsFile(folder / "metrics.jsonl") as metrics:
        trainer = _trainer(folder, base, dataset, recipe, device, save_every, metrics)
        _check_first_batch(trainer, dataset.train[0], folder / "films")
        trained = sum(weight.numel() for weight in trainer.model.parameters() if weight.requires_grad)
        print(f"training {trained:,} parameters on {len(dataset.train)} films, {device}", file=sys.stderr)
        if state is not None:
            print(f"continuing after step {_step_of(state)}", file=sys.stderr)
        with _stop_on_signal(trainer):
            trainer.train(resume_from_checkpoint=str(state) if state is not None else None)
        if trainer.stopped:
            raise KeyboardInterrupt
    losses = {name: values[-1] for name, values in metrics.losses.items() if values}
    total = sum(weight.numel() for weight in trainer.model.parameters())
    return Result(trainer.model, trainer.state.global_step, losses, trained, total, time.monotonic() - start, device)


def _device(recipe: Recipe) -> str:
    if torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    if recipe.quantize:
        raise ConfigError("--quantize: needs a GPU, and torch finds none. Remove the option.")
    return "CPU"


def _step_of(state: Path | None) -> int:
    return int(state.name.rpartition("-")[2]) if state is not None else 0


def _trainer(
    folder: Path, base: Path, dataset: Dataset, recipe: Recipe, device: str, save_every: int, metrics: MetricsFile
) -> _Trainer:
    films = folder / "films"
    logging.disable_progress_bar()
    torch.manual_seed(recipe.seed)
    arguments = SFTConfig(
        output_dir=str(folder / "states"),
        num_train_epochs=recipe.epochs,
        max_steps=recipe.steps or -1,
        per_device_train_batch_size=recipe.batch,
        per_device_eval_batch_size=recipe.batch,
        gradient_accumulation_steps=recipe.accumulate,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type="constant_with_warmup" if recipe.schedule == "constant" else recipe.schedule,
        warmup_steps=recipe.warmup,
        weight_decay=0.0,
        max_grad_norm=1.0,
        optim="adamw_torch" if device == "CPU" or not _has_8_bit(recipe) else "adamw_8bit",
        seed=recipe.seed,
        data_seed=recipe.seed,
        full_determinism=recipe.deterministic,
        bf16=_is_bf16(recipe, device),
        use_cpu=device == "CPU",
        gradient_checkpointing=recipe.gradient_checkpointing,
        max_length=None,  # a cut through the image tokens would be an error, one through the report a wrong lesson
        completion_only_loss=True,
        packing=False,
        logging_steps=1 if recipe.steps and recipe.steps < 100 else 10,
        logging_first_step=True,
        logging_nan_inf_filter=False,  # it would hide a loss that is not finite behind the mean of the others
        save_strategy="steps" if save_every else "epoch",
        save_steps=save_every or 500,
        save_total_limit=_STATES_KEPT,
        eval_strategy="epoch" if dataset.validation else "no",
        prediction_loss_only=True,
        dataloader_num_workers=0 if device == "CPU" else min(4, os.cpu_count() or 1),
        report_to="none",
        disable_tqdm=True,
    )
    trainer = _Trainer(
        model=_load(base, recipe, device),
        args=arguments,
        train_dataset=_rows(dataset.train, films),
        eval_dataset=_rows(dataset.validation, films) if dataset.validation else None,
        processing_class=AutoProcessor.from_pretrained(base),
        peft_config=_lora(recipe) if recipe.method == "lora" else None,
        callbacks=[_Progress(metrics)],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _load(base: Path, recipe: Recipe, device: str) -> Any:
    quantization = None
    if recipe.quantize:
        from transformers import BitsAndBytesConfig

        quantization = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
    # The CPU computes in bfloat16 under autocast only; frozen weights in float32 cost no accuracy and no time there.
    weights = torch.bfloat16 if device != "CPU" and _is_bf16(recipe, device) else torch.float32
    model = Gemma3ForConditionalGeneration.from_pretrained(
        base, dtype=weights, attn_implementation="sdpa", quantization_config=quantization
    )
    if recipe.method == "full":
        names = {"text": "language_model.", "vision": "vision_tower.", "projector": "multi_modal_projector."}
        prefixes = tuple(f"model.{names[module]}" for module in recipe.modules if module in names)
        for name, weight in model.named_parameters():
            head = name.startswith(("lm_head.", "model.language_model.embed_tokens."))
            weight.requires_grad_("head" in recipe.modules if head else name.startswith(prefixes))
    return model


def _is_bf16(recipe: Recipe, device: str) -> bool:
    return recipe.precision == "bf16" or (recipe.precision == "auto" and device != "CPU")


def _has_8_bit(recipe: Recipe) -> bool:
    """Return whether the optimizer's state is kept in 8 bits: where it is the largest part of the memory."""
    if recipe.method != "full":
        return False
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise ConfigError("--recipe full: on a GPU it needs bitsandbytes; pip install bitsandbytes") from error
    return True


def _lora(recipe: Recipe) -> LoraConfig:
    return LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.alpha,
        lora_dropout=recipe.dropout,
        bias="none",
        target_modules=recipe.target_modules,
        modules_to_save=recipe.modules_to_save or None,
        # Without it, PEFT trains output layer and embedding apart, and the merged model is tied no longer.
        ensure_weight_tying="head" in recipe.modules,
        task_type="CAUSAL_LM",
    )


def _rows(examples: Sequence[Example], films: Path) -> datasets.Dataset:
    message = datasets.List({"role": datasets.Value("string"), "content": datasets.Value("string")})
    # The image processor of a server gets RGB as well.
    features = datasets.Features(
        {"images": datasets.List(datasets.Image(mode="RGB")), "prompt": message, "completion": message}
    )
    rows = [
        {
            "images": [str(films / example.film)],
            "prompt": _prompt(example),
            "completion": [{"role": "assistant", "content": example.report}],
        }
        for example in examples
    ]
    return datasets.Dataset.from_list(rows, features=features)


def _prompt(example: Example) -> list[dict[str, str]]:
    system = [{"role": "system", "content": example.system}] if example.system is not None else []
    return [*system, {"role": "user", "content": example.prompt}]


def _check_first_batch(trainer: SFTTrainer, example: Example, films: Path) -> None:
    """Compare the trainer's batch of one film with what a server gives the model, token by token and pixel by pixel.

    Raises:
        TrainingError: They differ, the loss covers more than the report, or the image tokens are not marked.
    """
    batch = trainer.data_collator([trainer.train_dataset[0]])
    processor = trainer.processing_class
    with Image.open(films / example.film) as film:
        messages: Any = prompts.messages(example.prompt, "", system=example.system)
        messages[-1]["content"][0] = {"type": "image", "image": film.convert("RGB")}
        if example.system is not None:
            messages[0] = {"role": "system", "content": [{"type": "text", "text": example.system}]}
        served = processor.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
    ids, labels, length = batch["input_ids"][0], batch["labels"][0], served["input_ids"].shape[1]
    report = processor.tokenizer(example.report + "<end_of_turn>\n", add_special_tokens=False)["input_ids"]
    image = ids == processor.tokenizer.image_token_id
    wrong = {
        "the prompt": not torch.equal(ids[:length], served["input_ids"][0]),
        "the pixels": not torch.equal(batch["pixel_values"], served["pixel_values"]),
        "the report": ids[length:].tolist() != report or not torch.equal(labels[length:], ids[length:]),
        "the loss mask": bool((labels[:length] != -100).any()),
        "the marks of the image tokens": not torch.equal(batch["token_type_ids"][0].bool(), image),
    }
    if names := [name for name, differs in wrong.items() if differs]:
        raise TrainingError(
            f"the training would see other input than a server ({', '.join(names)}); use the versions of trl and "
            "transformers that pedcxr's locks/train.txt names"
        )


class _Trainer(SFTTrainer):  # type: ignore[misc]
    """A trainer whose states are complete or absent."""

    stopped = False

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        state = Path(self.args.output_dir, f"checkpoint-{self.state.global_step}")
        try:
            super()._save_checkpoint(model, trial)
            (state / run_folder.COMPLETE).touch()
        except (OSError, RuntimeError, SafetensorError) as error:
            shutil.rmtree(state, ignore_errors=True)
            raise saving_failed(error, state.parent.parent) from error


def saving_failed(error: Exception, folder: Path) -> TrainingError:
    """Return the error for a failed write into the folder."""
    state = run_folder.last_state(folder)
    outcome = f"the state after step {_step_of(state)} is kept" if state is not None else "no earlier state exists"
    reason = exhaustion.disk_reason(error) or str(error).splitlines()[0]
    return TrainingError(
        f"--out {folder}: saving failed ({reason}); {outcome}. Free some disk space and start the same command again."
    )


class _Progress(TrainerCallback):  # type: ignore[misc]
    """Writes metrics and progress, and stops the training if the loss is not finite."""

    def __init__(self, metrics: MetricsFile) -> None:
        self._metrics = metrics

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        logs = logs or {}
        self._metrics.add(state.global_step, state.max_steps, state.epoch, logs)
        for name in ("loss", "eval_loss", "grad_norm"):
            if not math.isfinite(float(logs.get(name, 0.0))):
                raise TrainingError(
                    f"{name} is not finite at step {state.global_step}. Start again in another folder with a lower "
                    "--learning-rate, or with --precision float32."
                )


@contextmanager
def _stop_on_signal(trainer: _Trainer) -> Iterator[None]:
    """After Ctrl-C or SIGTERM, finish the step, write the state and end. A second Ctrl-C ends at once."""

    class Stop(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if trainer.stopped:
                control.should_save = control.should_training_stop = True

        def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if trainer.stopped:
                control.should_evaluate = False  # the epoch did not end; a person waits

    def stop(number: int, _frame: FrameType | None) -> None:
        if trainer.stopped:
            raise KeyboardInterrupt
        trainer.stopped = True
        print("stopping after this step; the same command continues", file=sys.stderr)

    trainer.add_callback(Stop())
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _memory_advice(recipe: Recipe) -> Iterator[None]:
    """Report a lack of memory in the block with the settings that need less."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not exhaustion.is_memory(error):
            raise
        raise TrainingError(f"out of memory. Use {', or '.join(exhaustion.memory_advice(recipe))}.") from error
