"""The dashboard, the alerts and the configuration: files that agree with the catalogue."""

import json
import re

import pytest
import yaml

from cluster.dashboards import alerts, panels
from cluster.dashboards.__main__ import provision
from contracts.metrics import CATALOGUE

PARTS = {"histogram": ("_bucket",), "counter": ("",), "gauge": ("",)}


def exported():
    return {f"ray_{m.name}{part}": m for m in CATALOGUE for part in PARTS[m.kind]}


def names_in(text):
    return set(re.findall(r"ray_vlaw_\w+", text))


def targets():
    found = json.loads(panels.FILE.read_text())
    return [(p["title"], t) for p in found["panels"] for t in p.get("targets", [])]


def test_the_files_are_what_the_code_makes():
    assert panels.FILE.read_text(encoding="utf-8") == panels.text()
    assert alerts.FILE.read_text(encoding="utf-8") == alerts.text()


def test_every_metric_is_on_a_panel_and_no_panel_asks_for_another():
    used = set().union(*(names_in(target["expr"]) for _, target in targets()))
    assert used == set(exported())
    assert names_in(alerts.FILE.read_text()) <= set(exported())


@pytest.mark.parametrize(("title", "target"), targets(), ids=lambda value: str(value)[:40])
def test_a_panel_filters_groups_and_names_by_tags_that_exist(title, target):
    metrics = [exported()[name] for name in names_in(target["expr"])]
    tags = {"le"}.union(*(metric.tags for metric in metrics))
    assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= tags
    for group in re.findall(r"by \(([\w, ]+)\)", target["expr"]):
        assert set(group.split(", ")) <= tags, title
    for name, where in re.findall(r"ray_(vlaw_\w+?)(?:_bucket)?\{([^}]*)\}", target["expr"]):
        (metric,) = [m for m in metrics if m.name == name]
        assert set(re.findall(r"(\w+)(?:=~|!=|=)", where)) <= {"SessionName", *metric.tags}


def test_panels_do_not_cover_each_other():
    placed = [panel["gridPos"] for panel in json.loads(panels.FILE.read_text())["panels"]]
    cells = [
        (x, y)
        for at in placed
        for x in range(at["x"], at["x"] + at["w"])
        for y in range(at["y"], at["y"] + at["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) == 23


def test_imagination_throughput_comes_first():
    assert [title for title, _ in targets()][:3] == [
        "Net frames per second", "Net frames per second", "Trajectories per hour",
    ]  # fmt: skip


def test_growth_counts_a_counter_that_was_not_there_before():
    """What Prometheus' increase() leaves out: the first value of a series. See test_prometheus."""
    text = panels.grown(CATALOGUE[0], "task", 'outcome="stored"', "5m")
    assert text.startswith("clamp_min(sum by (task) (")
    assert "offset 5m" in text


def test_one_command_writes_whatever_the_two_programs_need(tmp_path):
    files = provision(tmp_path / "to", tmp_path / "ray", "http://prometheus:9090", "15s")
    assert all(path.is_file() for path in files)
    to = tmp_path / "to"
    scraping = yaml.safe_load((to / "prometheus/prometheus.yml").read_text())
    (job,) = scraping["scrape_configs"]
    (discovery,) = job["file_sd_configs"]
    assert discovery["files"] == [str(tmp_path / "ray/prom_metrics_service_discovery.json")]
    assert scraping["global"]["scrape_interval"] == "15s"
    assert (to / "prometheus" / scraping["rule_files"][0]).is_file()
    (source,) = yaml.safe_load((to / "grafana/provisioning/datasources/vlaw.yml").read_text())[
        "datasources"
    ]
    assert source["url"] == "http://prometheus:9090"
    (provider,) = yaml.safe_load((to / "grafana/provisioning/dashboards/vlaw.yml").read_text())[
        "providers"
    ]
    shown = to / "grafana" / "dashboards"
    assert provider["options"]["path"] == str(shown)
    assert json.loads((shown / "vlaw.json").read_text())["uid"] == "vlaw"
    assert f"provisioning = {to}/grafana/provisioning" in (to / "grafana/grafana.ini").read_text()
