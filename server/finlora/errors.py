"""The error tree. The engine raises these; only the HTTP layer turns them into status codes.

FinLoRAError
├── ConfigError                     a setting or a configuration file is wrong
├── BaseModelError                  a base model cannot be fetched, read or served
├── AdapterError
│   ├── AdapterNotFoundError        no adapter of that name (or digest) is registered
│   ├── AdapterIncompatibleError    the adapter does not fit this base or this server
│   ├── AdapterLoadError            the adapter's files are missing, broken or refused
│   └── AdapterConflictError        a change does not fit what is registered or in use now
├── RequestError                    the client's request cannot be served as it is
│   ├── PromptTooLongError          prompt and output do not fit the context window
│   └── InvalidSamplingParamsError  a sampling parameter is out of range
├── EngineError
│   ├── EngineOverloadedError       the waiting queue is full; try again later
│   └── EngineStoppedError          the engine is not running (starting, stopping, failed)
└── RemoteError                     a server that we ask does not answer as it should
"""


class FinLoRAError(Exception):
    """Base of every error this project raises on purpose; its text is fit for a user."""


class ConfigError(FinLoRAError):
    """A setting or a configuration file is wrong."""


class BaseModelError(FinLoRAError):
    """A base model cannot be fetched, read or served."""


class AdapterError(FinLoRAError):
    """Something is wrong with an adapter."""


class AdapterNotFoundError(AdapterError):
    """No adapter of that name (or digest) is registered."""


class AdapterIncompatibleError(AdapterError):
    """The adapter does not fit this base or this server."""


class AdapterLoadError(AdapterError):
    """The adapter's files are missing, broken or refused."""


class AdapterConflictError(AdapterError):
    """A change does not fit what is registered or in use now."""


class RequestError(FinLoRAError):
    """The client's request cannot be served as it is; `param` names the offending field."""

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class PromptTooLongError(RequestError):
    """Prompt and requested output do not fit the context window."""


class InvalidSamplingParamsError(RequestError):
    """A sampling parameter is out of range."""


class EngineError(FinLoRAError):
    """The engine cannot take or finish a request."""


class EngineOverloadedError(EngineError):
    """The waiting queue is full; `retry_after_seconds` says when to come back."""

    def __init__(self, message: str, *, retry_after_seconds: int = 1) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class EngineStoppedError(EngineError):
    """The engine is not running: starting, stopping or failed."""


class RemoteError(FinLoRAError):
    """A server that we ask does not answer as it should."""
