"""From panels as we describe them to the JSON that Grafana reads."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

GRID_WIDTH = 24
SCHEMA_VERSION = 41  # of Grafana 11.6
TAG = "finlora"
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}

JSON = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Query:
    """A PromQL expression and what its lines are called."""

    expr: str
    legend: str = "{{instance}}"


@dataclass(frozen=True, slots=True)
class Panel:
    """Lines over time, or one number (`stat`). `unit` is one of Grafana's."""

    title: str
    description: str
    unit: str
    queries: Sequence[Query]
    stat: bool = False
    stacked: bool = False
    width: int = 8
    height: int = 8
    needs_cuda: bool = False


@dataclass(frozen=True, slots=True)
class Dashboard:
    """Panels in reading order, under headings."""

    name: str
    title: str
    description: str
    rows: dict[str, Sequence[Panel]]
    variables: Sequence[JSON] = field(default_factory=tuple)

    @property
    def panels(self) -> list[Panel]:
        """All panels."""
        return [panel for panels in self.rows.values() for panel in panels]

    def json(self) -> JSON:
        """The whole dashboard."""
        return {
            "uid": f"{TAG}-{self.name}",
            "title": self.title,
            "description": self.description,
            "tags": [TAG],
            "schemaVersion": SCHEMA_VERSION,
            "editable": True,
            "graphTooltip": 1,  # one crosshair for all panels
            "timezone": "browser",
            "refresh": "10s",
            "time": {"from": "now-30m", "to": "now"},
            "links": [_link_to_the_others()],
            "templating": {"list": [_datasource_variable(), *self.variables]},
            "annotations": {"list": []},
            "panels": list(_laid_out(self.rows)),
        }


def label_variable(name: str, series: str) -> JSON:
    """A choice among the values of a label; all at first."""
    return {
        "name": name,
        "type": "query",
        "datasource": DATASOURCE,
        "query": {"query": f"label_values({series}, {name})", "refId": name},
        "refresh": 2,  # when the time range changes
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
    }


def _datasource_variable() -> JSON:
    return {"name": "datasource", "type": "datasource", "query": "prometheus", "refresh": 1}


def _link_to_the_others() -> JSON:
    return {
        "title": "finlora",
        "type": "dashboards",
        "tags": [TAG],
        "asDropdown": False,
        "includeVars": True,
        "keepTime": True,
    }


def _laid_out(rows: dict[str, Sequence[Panel]]) -> Iterator[JSON]:
    """Panels from left to right; a new line where the next one does not fit."""
    y, panel_id = 0, 1
    for heading, panels in rows.items():
        yield {
            "id": panel_id,
            "type": "row",
            "title": heading,
            "collapsed": False,
            "gridPos": {"x": 0, "y": y, "w": GRID_WIDTH, "h": 1},
            "panels": [],
        }
        x, y, line, panel_id = 0, y + 1, 0, panel_id + 1
        for panel in panels:
            if x + panel.width > GRID_WIDTH:
                x, y, line = 0, y + line, 0
            place = {"x": x, "y": y, "w": panel.width, "h": panel.height}
            yield {"id": panel_id, "gridPos": place, **_drawn(panel)}
            x, line, panel_id = x + panel.width, max(line, panel.height), panel_id + 1
        y += line


def _drawn(panel: Panel) -> JSON:
    return {
        "type": "stat" if panel.stat else "timeseries",
        "title": panel.title,
        "description": panel.description,
        "datasource": DATASOURCE,
        "targets": [
            {
                "refId": chr(ord("A") + i),
                "datasource": DATASOURCE,
                "expr": query.expr,
                "legendFormat": query.legend,
                "range": True,
            }
            for i, query in enumerate(panel.queries)
        ],
        "fieldConfig": {"defaults": _defaults(panel), "overrides": []},
        "options": _options(panel),
    }


def _defaults(panel: Panel) -> JSON:
    defaults: JSON = {"unit": panel.unit}
    if not panel.stat:
        stacking = {"mode": "normal" if panel.stacked else "none", "group": "A"}
        fill = 30 if panel.stacked else 10
        defaults["custom"] = {"fillOpacity": fill, "lineWidth": 1, "stacking": stacking}
        defaults["min"] = 0
    return defaults


def _options(panel: Panel) -> JSON:
    if panel.stat:
        reduced = {"calcs": ["lastNotNull"], "fields": "", "values": False}
        return {"reduceOptions": reduced, "colorMode": "value", "graphMode": "area"}
    return {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
