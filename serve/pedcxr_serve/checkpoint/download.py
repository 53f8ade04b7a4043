"""Resolve the `model` setting to a local folder: the demo checkpoint, a folder, or a download from Hugging Face."""

from __future__ import annotations

import re
from pathlib import Path

from pedcxr_serve.config import paths
from pedcxr_serve.errors import ConfigError

# Only the files that serving needs: no optimizer states, no copies of the weights in other formats.
FILES = (
    "config.json",
    "generation_config.json",
    "adapter_config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "processor_config.json",
    "preprocessor_config.json",
    "chat_template.jinja",
    "chat_template.json",
)
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)


def resolve(model: str, revision: str | None = None, *, setting: str = "model =") -> Path:
    """Return the folder of a model; download a hub id on first use (9 GB for the 4B model).

    Args:
        model: ``demo``, a folder, or a hub id ``owner/name``.
        revision: Branch, tag or commit of a hub id. Not allowed with the demo or a folder.
        setting: How messages name what ``model`` comes from.

    Raises:
        ConfigError: The folder or repository does not exist, or access or network is missing.
    """
    return local_folder(model, revision, setting=setting) or _download(model, revision, setting)


def local_folder(model: str, revision: str | None = None, *, setting: str = "model =") -> Path | None:
    """Return the folder of a model like `resolve`, or None for a hub id, without a download."""
    folder = paths.expand(model)
    is_folder = model == "demo" or paths.is_dir(folder)
    if is_folder and revision:
        raise ConfigError(f"revision = {revision!r}: allowed only with a hub id, but {model!r} is a folder. Remove it.")
    if model == "demo":
        return _demo()
    if is_folder:
        return folder.resolve()
    if paths.exists(folder):
        raise ConfigError(f"{setting} {model!r}: is a file. Give the folder that contains config.json and the weights.")
    if model.startswith((".", "/", "~")) or not _HUB_ID.fullmatch(model):
        raise ConfigError(
            f'{setting} {model!r}: no such folder. Use "demo", an existing folder, or a hub id such as owner/name.'
        )
    return None


def _demo() -> Path:
    from pedcxr_serve.demo import CHECKPOINT

    folder = Path(CHECKPOINT)
    if not folder.is_dir():
        raise ConfigError(f"model = 'demo': {folder} is missing from this installation. Reinstall pedcxr.")
    return folder


def _download(model: str, revision: str | None, setting: str) -> Path:
    try:
        from huggingface_hub import constants, errors, snapshot_download
    except ImportError as error:
        raise ConfigError(
            f"{setting} {model!r}: a hub id requires huggingface_hub. Install pedcxr[gpu] or pedcxr[cpu]."
        ) from error
    setting = f"{setting} {model!r}" + (f", revision = {revision!r}" if revision else "")
    page = f"{constants.ENDPOINT}/{model}"
    alternative = f"or download it on a machine with network access (`hf download {model}`) and give the folder."
    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=list(FILES)))
    except errors.GatedRepoError as error:
        raise ConfigError(
            f"{setting}: the repository is gated. Accept its licence at {page} with your account. Then set HF_TOKEN to "
            "a token of that account (or run `hf auth login`) and start again."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ConfigError(
            f"{setting}: the repository has no such revision. {page}/commits lists its revisions."
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise ConfigError(
            f"{setting}: the hub has no such repository (or it is private), and there is no local folder of that name. "
            "Check the spelling; for a private repository set HF_TOKEN."
        ) from error
    except errors.HFValidationError as error:
        raise ConfigError(f"{setting}: not a valid hub id ({error}). Use owner/name.") from error
    except errors.LocalEntryNotFoundError as error:
        raise ConfigError(f"{setting}: {_offline_reason(error, constants.HF_HUB_OFFLINE)} {alternative}") from error
    except (errors.HfHubHTTPError, OSError) as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        what = f"the hub answered {status}" if status else f"the download failed ({type(error).__name__}: {error})"
        raise ConfigError(f"{setting}: {what}. Downloaded files are kept: start again later, {alternative}") from error


def _offline_reason(error: BaseException, offline: bool) -> str:
    if offline:
        return "not in the local cache, and HF_HUB_OFFLINE is set. Unset it to download the model,"
    status = getattr(getattr(error.__cause__, "response", None), "status_code", None)
    what = f"the hub answered {status}" if status else "the hub is unreachable"
    return f"not complete in the local cache, and {what}. Check the network, the proxy and HF_ENDPOINT,"
