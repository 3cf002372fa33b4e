"""Who acts on the robot, and how: practice explores, evaluation does what it is told."""

from typing import Any

import pytest

from cluster import collecting
from cluster.checkpoints import CheckpointFolder
from cluster.collecting import Acting
from cluster.context import Context
from configs.policy import PolicyConfig
from configs.run import EvaluationConfig, RunConfig, TaskConfig, TaskOverrides
from services.progress import Reporter
from services.stages import Stages


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """The policies that two stages send to the robot, by the stage's name."""
    config = RunConfig(
        policy=PolicyConfig(noise=0.8),
        evaluation=EvaluationConfig(episodes=2, noise=0.25),
        each_task=TaskConfig(rollouts=3),
        task={"book": TaskOverrides()},
    )
    checkpoints = CheckpointFolder(tmp_path / "checkpoints")
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "model").write_text("none that is read")
    checkpoints.publish("policy", 0, tmp_path / "weights", {})
    found: dict[str, tuple[Acting, list[int]]] = {}

    def keep(_run: Context, name: str, policy: Acting, requests: list[Any], _store: str) -> dict:
        found[name] = (policy, [request.seed for request in requests])
        return {}

    monkeypatch.setattr(collecting, "roll_out", keep)
    with Reporter(tmp_path) as reporter:
        run = Context(
            config, tmp_path, ["book"], Stages(tmp_path / "stages"), reporter, checkpoints, None
        )
        collecting.collect(run, 1, 0)
        collecting.evaluate(run, "base", 0)
    return found


def test_practice_and_evaluation_have_noise_of_their_own(asked):
    assert asked["1 collect"][0].config.noise == 0.8
    assert asked["evaluate base"][0].config.noise == 0.25
    assert asked["evaluate base"][1] == [1_000_000, 1_000_001]
    assert len(set(asked["1 collect"][1])) == 3
