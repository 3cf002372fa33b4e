"""Prometheus and Grafana for a running loop, as files; see docs/observability.md."""
