"""From what a user calls a base to the folder that holds its 16-bit weights and tokenizer."""

import re
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from finlora.bases.embedded import EMBEDDED, fetch
from finlora.errors import BaseModelError

HUB_ID = re.compile(r"(?P<id>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>[\w./-]+))?")
# Weights in safetensors only: the other formats can run code when they are read.
HUB_FILES = ["config.json", "generation_config.json", "tokenizer*.json", "*.safetensors"]
HUB_FILES += ["model.safetensors.index.json", "special_tokens_map.json", "chat_template.jinja"]


def locate(model: str) -> Path:
    """The folder with config.json, tokenizer.json and *.safetensors of an embedded base, a local
    folder or a hub id (`owner/name`, `owner/name@revision`); fetched first where needed.

    Raises BaseModelError.
    """
    if model in EMBEDDED:
        return fetch(EMBEDDED[model])
    folder = _local(model) or _download(model)
    _check(folder)
    return folder


def find(model: str) -> Path | None:
    """As `locate`, but only what is on disk already."""
    if model in EMBEDDED:
        return EMBEDDED[model].folder if EMBEDDED[model].is_fetched else None
    if folder := _local(model):
        return folder
    hub = HUB_ID.fullmatch(model)
    if hub is None:
        return None
    try:
        return Path(
            snapshot_download(
                hub["id"],
                revision=hub["revision"],
                allow_patterns=HUB_FILES,
                local_files_only=True,
            )
        )
    except (LocalEntryNotFoundError, HFValidationError):
        return None


def display_name(model: str) -> str:
    """What the base is called: an embedded name, a hub id, or a folder's own name."""
    folder = None if model in EMBEDDED else _local(model)
    return model if folder is None else folder.resolve().name


def _local(model: str) -> Path | None:
    folder = Path(model).expanduser()
    return folder if model and folder.is_dir() else None


def _download(model: str) -> Path:
    hub = HUB_ID.fullmatch(model)
    if hub is None:
        raise _unknown(model)
    try:
        return Path(
            snapshot_download(hub["id"], revision=hub["revision"], allow_patterns=HUB_FILES)
        )
    except HFValidationError as error:  # the hub's rules are narrower than ours
        raise _unknown(model) from error
    except GatedRepoError as error:
        raise BaseModelError(
            f"{model} is gated: accept its terms on the hub and log in (`hf auth login`)"
        ) from error
    except RepositoryNotFoundError as error:
        raise BaseModelError(f"{model} is not on the hub (or private: `hf auth login`)") from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise BaseModelError(
            f"{model} is not in the hub's local cache and the hub cannot be reached"
        ) from error
    except (HfHubHTTPError, OSError) as error:
        raise BaseModelError(f"cannot fetch {model} from the hub: {error}") from error


def _unknown(model: str) -> BaseModelError:
    return BaseModelError(
        f"unknown base {model!r}: neither a folder, nor a hub id (owner/name), nor embedded "
        f"({', '.join(EMBEDDED)})"
    )


def _check(folder: Path) -> None:
    for name in ("config.json", "tokenizer.json"):
        if not (folder / name).is_file():
            raise BaseModelError(f"{folder} has no {name}: not a base this server can read")
