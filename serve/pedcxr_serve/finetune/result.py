"""Write the result of a training: the adapter or the checkpoint, the record, and the model card."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from pedcxr_serve.finetune import checkpoint_files, model_card, run_folder, trainer
from pedcxr_serve.finetune.trainer import Result


def publish(folder: Path, base: Path, run: dict[str, Any], trained: Result) -> None:
    """Write everything into a subfolder first, so that a full disk leaves the last state and no partial result.

    Raises:
        TrainingError: The files cannot be written.
    """
    record = run | {
        "result": {
            "steps": trained.steps,
            "losses": trained.losses,
            "trained_parameters": trained.trained,
            "parameters": trained.parameters,
            "seconds": round(trained.seconds, 1),
            "device": trained.device,
        }
    }
    staged = folder / "new"
    try:
        shutil.rmtree(staged, ignore_errors=True)
        staged.mkdir()
        if run["recipe"]["method"] == "full":
            checkpoint_files.save(trained.model, base, staged)
        else:
            for config in trained.model.peft_config.values():
                config.base_model_name_or_path = run["base"]["model"]
                config.revision = run["base"]["revision"]  # `checkpoint.adapter` compares it with the served base
            trained.model.save_pretrained(staged, save_embedding_layers=False)
        (staged / "README.md").write_text(model_card.card(record), encoding="utf-8")
        run_folder.publish(folder, staged, record)
    except (OSError, RuntimeError, SafetensorError) as error:
        shutil.rmtree(staged, ignore_errors=True)
        raise trainer.saving_failed(error, folder) from error
