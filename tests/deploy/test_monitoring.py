"""deploy/prometheus and deploy/grafana: alerts that fire, and queries that name what /metrics shows."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

from polyreel.metrics import METRICS
from tests.deploy.tools import ROOT, compose, program, run

ALERTS = ROOT / "deploy/prometheus/alerts.yml"
DASHBOARD = ROOT / "deploy/grafana/dashboards/polyreel.json"


def shown() -> dict[str, tuple[str, ...]]:
    """Return the samples of /metrics with their labels, as a query may name them."""
    found: dict[str, tuple[str, ...]] = {}
    for metric in METRICS:
        if metric.kind == "histogram":
            found |= {f"{metric.name}_{part}": metric.labels for part in ("sum", "count")}
            found[f"{metric.name}_bucket"] = (*metric.labels, "le")
        else:
            found[metric.shown] = metric.labels
    return found


def rules() -> list[dict[str, Any]]:
    """Return the alerts. Any: they are read from YAML."""
    (group,) = yaml.safe_load(ALERTS.read_text())["groups"]
    alerts: list[dict[str, Any]] = group["rules"]
    return alerts


def queries() -> list[str]:
    """Return every query of the dashboard."""
    return [target["expr"] for panel in json.loads(DASHBOARD.read_text())["panels"] for target in panel["targets"]]


def test_prometheus_takes_its_configuration() -> None:
    run(program("promtool"), "check", "config", "deploy/prometheus/prometheus.yml")


def test_each_alert_fires_when_it_should_and_not_before() -> None:
    run(program("promtool"), "test", "rules", "deploy/prometheus/alerts_test.yml")
    fired = set(re.findall(r'alertname="(\w+)"', (ROOT / "deploy/prometheus/alerts_test.yml").read_text()))
    assert fired == {rule["alert"] for rule in rules()}
    assert len(fired) == 11


def test_each_alert_says_what_to_do() -> None:
    for rule in rules():
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert set(rule["annotations"]) == {"summary", "runbook"}
        assert len(rule["annotations"]["runbook"]) > 60


def test_alerts_and_dashboard_ask_for_samples_and_labels_that_are_shown() -> None:
    known = shown()
    for query in [*(rule["expr"] for rule in rules()), *queries()]:
        named = re.findall(r"\bpolyreel_[a-z_]+", query)
        assert set(named) <= set(known), query
        labels = {label for name in named for label in known[name]} | {"instance"}
        for grouped in re.findall(r"(?:by|on|without) \(([a-z, ]+)\)", query):
            assert set(re.split(", *", grouped)) <= labels, query
        assert set(re.findall(r"(\w+)=~?\"", query)) <= labels | {"job"}, query


def test_prometheus_understands_the_queries_of_the_dashboard(tmp_path: Path) -> None:
    file = tmp_path / "queries.yml"
    named = [{"record": f"query_{number}", "expr": query} for number, query in enumerate(queries())]
    assert len(named) > 20
    file.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": named}]}))
    run(program("promtool"), "check", "rules", file)


def test_grafana_finds_the_dashboard_and_its_source() -> None:
    provisioning = ROOT / "deploy/grafana/provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources/prometheus.yml").read_text())["datasources"]
    (provider,) = yaml.safe_load((provisioning / "dashboards/polyreel.yml").read_text())["providers"]
    grafana = compose("monitoring")["services"]["grafana"]
    mounts = {volume["target"]: Path(volume["source"]) for volume in grafana["volumes"]}
    assert mounts[provider["options"]["path"]] == DASHBOARD.parent
    assert source["url"] == "http://prometheus:9090"
    panels = json.loads(DASHBOARD.read_text())["panels"]
    assert {panel["datasource"]["uid"] for panel in panels} == {source["uid"]}
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in panels)
