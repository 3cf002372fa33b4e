"""Which Ray a run uses, and what is said when it cannot."""

import json

import pytest

from cluster import session
from configs.run import ClusterConfig, RunConfig, TaskOverrides


def run_config(address: str = "") -> RunConfig:
    return RunConfig(task={"book": TaskOverrides()}, cluster=ClusterConfig(address=address))


@pytest.fixture
def starts(monkeypatch):
    """What ``ray.init`` was given; ``starts.append(error)`` beforehand makes it raise that."""
    calls = []

    def init(**options):
        if calls and isinstance(calls[0], Exception):
            raise calls[0]
        calls.append(options)

    monkeypatch.setattr(session.ray, "init", init)
    monkeypatch.setattr(session.ray, "shutdown", lambda: None)
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    return calls


def submitted(monkeypatch, **runtime_env):
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps({"runtime_env": runtime_env}))


def test_a_plain_run_starts_its_own_whatever_ray_address_says(starts):
    with session.session(run_config(), ["book"]):
        assert starts[0]["address"] == "local"
    assert not session.is_joined(run_config())


def test_a_submitted_job_joins_its_cluster_and_ships_nothing_again(starts, monkeypatch):
    submitted(monkeypatch, working_dir="gcs://_ray_pkg_1.zip")
    with session.session(run_config(), ["book"]):
        assert (starts[0]["address"], starts[0]["runtime_env"]) == ("auto", None)
        assert "num_cpus" not in starts[0]


def test_code_that_the_job_did_not_bring_is_shipped(starts, monkeypatch):
    """``ray job submit -- python /shared/vlaw/ray_job.py``, or a driver beside the cluster."""
    submitted(monkeypatch, env_vars={"A": "b"})
    with session.session(run_config(), ["book"]):
        assert starts[0]["runtime_env"] == {"working_dir": str(session.ROOT)}
    with session.session(run_config("10.0.0.1:6379"), ["book"]):
        assert starts[1]["address"] == "10.0.0.1:6379"
        assert starts[1]["runtime_env"] == {"working_dir": str(session.ROOT)}


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            ConnectionError("Failed to connect to Ray cluster at 10.0.0.1:6379"),
            "no Ray cluster answers there .*RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH=<file>",
        ),
        (
            RuntimeError("Version mismatch: The cluster was started with:\n    Ray: 2.59.0\n"),
            "runs other versions: .* Ray: 2.59.0 Install the same Python and requirements.txt",
        ),
        (
            ValueError("Invalid Ray address: It looks like you set RAY_ADDRESS to an HTTP address"),
            "RAY_ADDRESS=http://head:8265 is where jobs are submitted: use `ray job submit`",
        ),
    ],
)
def test_a_cluster_that_cannot_be_joined_is_one_message(starts, monkeypatch, error, said):
    monkeypatch.setenv("RAY_ADDRESS", "http://head:8265")
    starts.append(error)
    with pytest.raises(ValueError, match=said), session.session(run_config("auto"), ["book"]):
        pass


def test_other_errors_of_ray_are_not_dressed_up(starts):
    starts.append(RuntimeError("no space left on device"))
    with pytest.raises(RuntimeError, match="no space"), session.session(run_config("auto"), []):
        pass
