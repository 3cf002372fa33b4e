"""``python -m cluster.dashboards <folder>``: everything that Prometheus and Grafana must be told.

It writes files and starts nothing; what to start is printed.
"""

import argparse
import shutil
from pathlib import Path

import yaml

from cluster.dashboards import alerts, panels

RAY_FOLDER = "/tmp/ray"  # where Ray is unless it was started with --temp-dir
DISCOVERY = "prom_metrics_service_discovery.json"  # Ray's head writes it, every node is in it
PROMETHEUS = "http://localhost:9090"


def provision(folder: Path, ray_folder: Path, prometheus: str, every: str = "10s") -> list[Path]:
    """Write the configuration into ``folder`` and return its files.

    ``ray_folder``: Ray's temporary folder on the head node. ``prometheus``: where Grafana finds
    it. ``every``: how often Prometheus asks; Ray's processes report every 10 s.
    """
    folder = folder.resolve()
    shown = folder / "grafana" / "dashboards"
    provisioning = folder / "grafana" / "provisioning"
    prometheus_folder = folder / "prometheus"
    for one in (shown, prometheus_folder, provisioning):
        one.mkdir(parents=True, exist_ok=True)
    shutil.copy(panels.FILE, shown)
    shutil.copy(alerts.FILE, prometheus_folder)
    written = {
        prometheus_folder / "prometheus.yml": _scraping(ray_folder.resolve(), every),
        provisioning / "datasources" / "vlaw.yml": _source(prometheus),
        provisioning / "dashboards" / "vlaw.yml": _provider(shown),
        folder / "grafana" / "grafana.ini": _ini(provisioning),
    }
    for path, content in written.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    return [*written, shown / panels.FILE.name, prometheus_folder / alerts.FILE.name]


def _scraping(ray_folder: Path, every: str) -> str:
    discovery = {"files": [str(ray_folder / DISCOVERY)], "refresh_interval": every}
    return yaml.safe_dump(
        {
            "global": {"scrape_interval": every, "evaluation_interval": every},
            "rule_files": ["alerts.yml"],
            "scrape_configs": [{"job_name": "ray", "file_sd_configs": [discovery]}],
        },
        sort_keys=False,
    )


def _source(prometheus: str) -> str:
    one = {"name": "Prometheus", "type": "prometheus", "access": "proxy", "url": prometheus}
    return yaml.safe_dump({"apiVersion": 1, "datasources": [one | {"isDefault": True}]})


def _provider(shown: Path) -> str:
    """Ours and, where Ray is told to put them there, Ray's own dashboards."""
    one = {"name": "VLAW", "folder": "VLAW", "type": "file", "options": {"path": str(shown)}}
    return yaml.safe_dump({"apiVersion": 1, "providers": [one]})


def _ini(provisioning: Path) -> str:
    """On loopback, readable without an account, shown inside the Ray dashboard."""
    return f"""[server]
http_addr = 127.0.0.1
[security]
allow_embedding = true
[auth.anonymous]
enabled = true
org_role = Viewer
[paths]
provisioning = {provisioning}
"""


def _next_steps(folder: Path, prometheus: str) -> str:
    folder = folder.resolve()
    return f"""
1. on the head node, before `ray start --head` or `python ray_job.py`:
     export RAY_PROMETHEUS_HOST={prometheus} RAY_GRAFANA_HOST=http://localhost:3000
     export RAY_METRICS_GRAFANA_DASHBOARD_OUTPUT_DIR={folder}/grafana/dashboards
2. prometheus --config.file={folder}/prometheus/prometheus.yml \\
     --storage.tsdb.path={folder}/prometheus/data --web.listen-address=127.0.0.1:9090
3. grafana-server --homepath /usr/share/grafana --config {folder}/grafana/grafana.ini
   then http://localhost:3000/d/vlaw"""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m cluster.dashboards", description=__doc__)
    parser.add_argument("folder", type=Path, help="where to write the configuration")
    parser.add_argument("--prometheus", default=PROMETHEUS, help="where Grafana finds Prometheus")
    parser.add_argument("--ray-folder", type=Path, default=Path(RAY_FOLDER), help="Ray's folder")
    parser.add_argument("--every", default="10s", help="how often Prometheus asks")
    given = parser.parse_args()
    for path in provision(given.folder, given.ray_folder, given.prometheus, given.every):
        print(path)  # noqa: T201
    print(_next_steps(given.folder, given.prometheus))  # noqa: T201


if __name__ == "__main__":
    main()
