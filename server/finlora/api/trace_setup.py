"""Whether requests are traced: by a flag, or by OpenTelemetry's own variables."""

import os

from finlora.api.access_log import Tracer
from finlora.config import Settings
from finlora.errors import ConfigError

# As OpenTelemetry names them; its exporter reads them itself.
VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")


def make_tracer(settings: Settings) -> Tracer | None:
    """A tracer where somebody listens. Raises ConfigError when the extra is not installed."""
    if settings.otlp_endpoint is None and not any(map(os.environ.get, VARIABLES)):
        return None
    try:
        from finlora.api.tracing import RequestTracer, otlp_provider
    except ImportError as error:
        raise ConfigError(f"traces need: pip install 'finlora[otel]' ({error})") from error
    return RequestTracer(otlp_provider(settings.otlp_endpoint))
