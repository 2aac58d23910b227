"""Every Prometheus series of the process, in a registry that is handed in.

`finlora_*` are our own. The `vllm:*` subset repeats some of them under the names that existing
dashboards and the Kubernetes inference gateway read. Callers pass plain numbers and strings.
"""

from finlora.metrics.adapter_series import BASE_LABEL, OTHER_LABEL, RegisteredAdapters
from finlora.metrics.events import FinishedRequest
from finlora.metrics.gauges import EngineGauges
from finlora.metrics.metrics import Metrics

__all__ = [
    "BASE_LABEL",
    "OTHER_LABEL",
    "EngineGauges",
    "FinishedRequest",
    "Metrics",
    "RegisteredAdapters",
]
