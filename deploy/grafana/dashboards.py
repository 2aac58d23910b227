"""The dashboards, as code. `python -m deploy.grafana.dashboards` writes the JSON files."""

import json
import sys
from pathlib import Path

from deploy.grafana.boards.adapters import ADAPTERS
from deploy.grafana.boards.loadtest import LOADTEST
from deploy.grafana.boards.memory import MEMORY
from deploy.grafana.boards.overview import OVERVIEW
from deploy.grafana.panels import Dashboard

FOLDER = Path(__file__).parent / "dashboards"
DASHBOARDS = (OVERVIEW, ADAPTERS, MEMORY, LOADTEST)


def rendered(dashboard: Dashboard) -> str:
    """The content of its file."""
    return json.dumps(dashboard.json(), indent=2) + "\n"


def file_of(dashboard: Dashboard) -> Path:
    """Where Grafana finds it."""
    return FOLDER / f"{dashboard.name}.json"


def main() -> int:
    """Write all files."""
    for dashboard in DASHBOARDS:
        file_of(dashboard).write_text(rendered(dashboard), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
