"""Alerts, runbooks and the dashboard name nothing that isn't there."""

from __future__ import annotations

import json
import re
from pathlib import Path

from prometheus_client.metrics import MetricWrapperBase

from domain import metrics
from tests.charts.alerts import SCENES, alerts

DASHBOARD = Path("charts/healthmed/files/dashboard.json")
RUNBOOKS = Path("docs/runbooks")
ENDINGS = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "gauge": ("",)}


def counted() -> set[str]:
    """The names that processes count under."""
    figures = [each for each in vars(metrics).values() if isinstance(each, MetricWrapperBase)]
    return {f"{each._name}{ending}" for each in figures for ending in ENDINGS[each._type]}


def stored() -> set[str]:
    """The names that the database's figures have."""
    return set(re.findall(r'GaugeMetricFamily\(\s*"(\w+)"', Path(metrics.__file__).read_text()))


def named(expressions: str) -> set[str]:
    return set(re.findall(r"\bhealthmed_\w+", expressions))


def test_every_figure_in_an_alert_exists() -> None:
    wanted = named(" ".join(rule["expr"] for rule in alerts().values()))
    assert wanted
    assert wanted <= counted() | stored()


def test_every_figure_on_the_dashboard_exists() -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    wanted = named(" ".join(target["expr"] for panel in panels for target in panel.get("targets", [])))
    assert len(wanted) > 20
    assert wanted <= counted() | stored()


def test_every_figure_is_on_the_dashboard() -> None:
    shown = named(DASHBOARD.read_text())
    missing = {name for name in counted() | stored() if name not in shown and not name.endswith(("_count", "_sum"))}
    assert missing == set()


def test_every_alert_has_a_runbook_and_every_runbook_an_alert() -> None:
    assert {f"{rule['annotations']['runbook']}.md" for rule in alerts().values()} == {file.name for file in RUNBOOKS.glob("*.md")}


def test_every_alert_is_woken_by_a_scene() -> None:
    assert {alert for _, _, awake in SCENES for alert in awake} == alerts().keys()


def test_panels_stand_beside_and_below_each_other() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        place = panel["gridPos"]
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])}
        assert place["x"] + place["w"] <= 24
        assert not cells & taken
        taken |= cells
