"""One policy version behind a process border."""

from collections.abc import Sequence
from pathlib import Path

from configs.policy import PolicyConfig
from contracts.protocols import Policy
from contracts.types import ActionChunk, Checkpoint, Observation


class PolicyServer:
    """Answers any number of robots with one checkpoint; loading happens in its own process.

    Ray imports this module in every process that holds a handle of it, on the robot's machine too:
    the module itself needs neither torch nor a model.
    """

    def __init__(self, config: PolicyConfig, checkpoint: Checkpoint, threads: int = 1) -> None:
        import torch  # noqa: PLC0415

        from models.build import load_acting_policy  # noqa: PLC0415
        from models.device import on_gpu  # noqa: PLC0415

        torch.set_num_threads(threads)
        folder = Path(checkpoint.uri)
        self._policy: Policy = on_gpu(load_acting_policy(config, folder, checkpoint.version))

    def act(self, observations: Sequence[Observation], seeds: Sequence[int]) -> list[ActionChunk]:
        return self._policy.act(observations, seeds)

    def version(self) -> int:
        return self._policy.version
