"""Every setting of the server, its default and its bounds, written once.

Order of precedence: command-line flag, `FINLORA_*` variable, TOML file named by `FINLORA_CONFIG`,
default. This module reads no device and no model.
"""

import os
import tomllib
from difflib import get_close_matches
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, NonNegativeInt, PositiveInt, SecretStr, ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from finlora.errors import ConfigError

DEFAULT_BASE = "smollm2-135m-instruct"
MIB = 1024 * 1024
GIB = 1024 * MIB


class Quantization(StrEnum):
    """How the linear layers of the base are stored."""

    NF4 = "nf4"
    FP4 = "fp4"
    INT8 = "int8"
    NONE = "none"


class LogFormat(StrEnum):
    """How log lines are written."""

    TEXT = "text"
    JSON = "json"


class LogLevel(StrEnum):
    """The least severe lines that are written."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


def _check_key(key: SecretStr) -> SecretStr:
    """An empty key would let everybody in; one that a file's last line break ends, nobody."""
    text = key.get_secret_value()
    if text.split() != [text]:
        raise ValueError("must not be empty or contain white space")
    return key


Key = Annotated[SecretStr, AfterValidator(_check_key)]


class Settings(BaseSettings):
    """What one server process runs with."""

    model_config = SettingsConfigDict(
        env_prefix="FINLORA_",
        env_ignore_empty=True,  # compose files and shells set what was left out to nothing
        frozen=True,
        extra="ignore",
        hide_input_in_errors=True,  # of a key, in a traceback
    )

    model: Annotated[str, Field(description="embedded base, local folder or hub id")] = DEFAULT_BASE
    quantization: Annotated[
        Quantization, Field(description="storage of the linear layers (none: 16 bits)")
    ] = Quantization.NF4
    device: Annotated[str, Field(description="cpu, cuda, cuda:N or auto")] = "auto"
    threads: Annotated[
        NonNegativeInt,
        Field(description="CPU threads; 0: OMP_NUM_THREADS, else the cores it may use"),
    ] = 0

    host: Annotated[str, Field(description="address to listen on")] = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535, description="port; 0 picks a free one")] = 8000
    api_key: Annotated[Key | None, Field(description="key for /v1 (env preferred)")] = None
    admin_key: Annotated[Key | None, Field(description="key for administration")] = None
    insecure: Annotated[bool, Field(description="allow a public address without a key")] = False
    max_body_bytes: Annotated[PositiveInt, Field(description="largest request body")] = 4 * MIB
    shutdown_seconds: Annotated[NonNegativeInt, Field(description="time to drain requests")] = 20
    metrics_max_adapters: Annotated[
        NonNegativeInt, Field(description="adapters with series of their own")
    ] = 100

    log_format: Annotated[LogFormat, Field(description="form of log lines")] = LogFormat.TEXT
    log_level: Annotated[
        LogLevel, Field(description="least level; info: one line for each request")
    ] = LogLevel.INFO
    log_prompts: Annotated[
        bool, Field(description="put prompts and answers into the log: clients' data")
    ] = False
    otlp_endpoint: Annotated[
        str | None, Field(description="send traces there (OTLP over HTTP; needs finlora[otel])")
    ] = None

    registry: Annotated[Path | None, Field(description="folder of the adapter registry")] = None
    strict: Annotated[
        bool, Field(description="refuse adapters trained on another or unknown quantisation")
    ] = False
    default_adapter: Annotated[
        str | None, Field(description="adapter for requests that name the base")
    ] = None

    max_num_seqs: Annotated[PositiveInt, Field(description="sequences in one batch")] = 64
    max_num_batched_tokens: Annotated[PositiveInt, Field(description="tokens in one step")] = 2048
    max_model_len: Annotated[
        NonNegativeInt, Field(description="longest prompt + output; 0: the base's own, up to 4096")
    ] = 0
    max_num_waiting: Annotated[PositiveInt, Field(description="requests queued before 503")] = 1024
    max_loras: Annotated[NonNegativeInt, Field(description="adapter slots; 0: no adapters")] = 16
    max_lora_rank: Annotated[
        int, Field(ge=1, le=512, description="largest rank that is served")
    ] = 64
    kv_cache_bytes: Annotated[PositiveInt, Field(description="memory for keys and values")] = GIB
    prefix_cache: Annotated[
        bool, Field(description="share keys and values of equal beginnings")
    ] = True
    wide_copies: Annotated[
        bool, Field(description="also keep the weights dequantised: faster prompts, more memory")
    ] = False
    adapter_cache_bytes: Annotated[
        PositiveInt, Field(description="memory for adapters in RAM; those in slots may take more")
    ] = GIB

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags first, then variables, then the TOML file that `FINLORA_CONFIG` names."""
        file = _config_file()
        if file is None:
            return init_settings, env_settings
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, file)


def load_settings(**flags: Any) -> Settings:
    """Settings from flags that were given (None: not given), environment, file and defaults.

    Raises ConfigError with one line per wrong setting.
    """
    file = _config_file()
    if file is not None:
        _check_file(file)
    try:
        return Settings(**{name: value for name, value in flags.items() if value is not None})
    except ValidationError as error:
        raise ConfigError("; ".join(map(_told, error.errors()))) from error


def _config_file() -> Path | None:
    return Path(file) if (file := os.environ.get("FINLORA_CONFIG")) else None


def _told(problem: ErrorDetails) -> str:
    name = str(problem["loc"][0])
    flag = f"--{name.replace('_', '-')}"
    message = problem["msg"].removeprefix("Value error, ")
    what = f"{message[:1].lower()}{message[1:]}"
    given = "" if name.endswith("_key") else f", not {problem['input']!r:.80}"
    return f"{name} ({flag}, FINLORA_{name.upper()}): {what}{given}"


def _check_file(file: Path) -> None:
    """A setting that is misspelt would be one that is silently not used."""
    try:
        found = tomllib.loads(file.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"FINLORA_CONFIG names {file}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"FINLORA_CONFIG names {file}, which is not TOML: {error}") from error
    unknown = found.keys() - Settings.model_fields
    if unknown:
        name = min(unknown)
        close = get_close_matches(name, Settings.model_fields, n=1)
        meant = f"; did you mean {close[0]}?" if close else ""
        raise ConfigError(f"{file}: {name} is not a setting{meant}")


def cache_folder() -> Path:
    """Where fetched and quantised bases live: `FINLORA_CACHE`, else the XDG cache."""
    if folder := os.environ.get("FINLORA_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "finlora"


def registry_folder(settings: Settings) -> Path:
    """The registry: flag or variable, else `./adapters_registry`, else the XDG data folder."""
    if settings.registry is not None:
        return settings.registry
    local = Path("adapters_registry")
    if local.is_dir():
        return local.resolve()
    data = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    return data / "finlora" / "adapters_registry"
