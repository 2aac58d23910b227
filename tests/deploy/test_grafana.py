"""The dashboards: current, well formed by Grafana's own model, readable."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard as GrafanaDashboard

from deploy.grafana.dashboards import DASHBOARDS, FOLDER, file_of, rendered
from deploy.grafana.panels import GRID_WIDTH, SCHEMA_VERSION, Dashboard, Panel

PANELS = [panel for dashboard in DASHBOARDS for panel in dashboard.panels]
# Of Grafana's list of units, those in use here.
UNITS = {"bytes", "cps", "none", "ops", "percentunit", "reqps", "s", "short"}

each_dashboard = pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda one: str(one.name))


@each_dashboard
def test_the_file_is_what_the_code_says(dashboard: Dashboard) -> None:
    assert file_of(dashboard).read_text("utf-8") == rendered(dashboard), "run the module again"


def test_no_file_is_left_of_an_older_dashboard() -> None:
    assert {*FOLDER.iterdir()} == {file_of(dashboard) for dashboard in DASHBOARDS}


@each_dashboard
def test_grafanas_model_loses_nothing_of_it(dashboard: Dashboard) -> None:
    register_default_plugins()
    ours = dashboard.json()
    decoded = GrafanaDashboard.from_json(json.loads(json.dumps(ours)))
    theirs = json.loads(JSONEncoder(sort_keys=True).encode(decoded))
    assert list(missing(ours, theirs)) == []
    assert ours["schemaVersion"] == SCHEMA_VERSION


def missing(ours: Any, theirs: Any, path: str = "") -> Any:
    """Where a value of ours is not in theirs, which may have defaults besides."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for name, value in ours.items():
            yield from missing(value, theirs.get(name), f"{path}.{name}")
    elif isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            yield from missing(a, b, f"{path}[{i}]")
    elif ours != theirs:
        yield f"{path}: {ours!r} became {theirs!r}"


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: str(panel.title))
def test_a_panel_says_what_it_shows_and_in_what_unit(panel: Panel) -> None:
    assert panel.description.endswith(".")
    assert panel.unit in UNITS or panel.unit.startswith("suffix: ")
    assert panel.queries


@each_dashboard
def test_ids_are_unique_and_panels_do_not_overlap(dashboard: Dashboard) -> None:
    panels = dashboard.json()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        grid = panel["gridPos"]
        columns = range(grid["x"], grid["x"] + grid["w"])
        lines = range(grid["y"], grid["y"] + grid["h"])
        cells = {*itertools.product(columns, lines)}
        assert columns.stop <= GRID_WIDTH
        assert not cells & taken
        taken |= cells


def test_dashboards_have_uids_of_their_own() -> None:
    assert len({dashboard.json()["uid"] for dashboard in DASHBOARDS}) == len(DASHBOARDS)


def test_provisioning_finds_prometheus_and_the_files() -> None:
    folder = Path(FOLDER).parent / "provisioning"
    sources = yaml.safe_load((folder / "datasources" / "prometheus.yml").read_text("utf-8"))
    providers = yaml.safe_load((folder / "dashboards" / "finlora.yml").read_text("utf-8"))
    assert sources["datasources"][0]["type"] == "prometheus"
    assert providers["providers"][0]["options"]["path"] == "/etc/finlora/dashboards"
