"""What a run is expected to cost, and by which rates."""

import math
from dataclasses import dataclass
from typing import Any

from configs.checks import one_of

RATES = {  # seconds of one unit of work on one worker, unless said otherwise
    "start": "until a stage's processes work",
    "episode_tick": "one 15 Hz tick of a robot's episode: 1/15 on a real one",
    "reset": "putting the scene back between two episodes",
    "episode_share": "an episode's ticks as a share of the longest it may take",
    "chunk": "one slot of one world-model call, policy included",
    "chunk_share": "an imagined trajectory's chunks as a share of imagination.max_chunks",
    "clip": "scoring one trajectory",
    "policy_step": "one training step of the policy",
    "world_model_step": "one training step of the world model",
    "reward_step": "one training step of the reward model",
    "real_bytes": "bytes on disk of one episode; 0: from the pictures' size",
    "imagined_bytes": "bytes on disk of one imagined trajectory; 0: from the pictures' size",
}


@dataclass
class EstimateConfig:
    """Where the rates of an estimate come from: ``rates`` before ``run`` before built-in ones."""

    run: str = ""  # folder of an earlier run whose rates were measured
    rates: Any = None  # {name: number}, names as in RATES; hydra adds no names to a typed dict

    def __post_init__(self) -> None:
        rates = {} if self.rates is None else self.rates
        if not isinstance(rates, dict):
            raise ValueError(f"estimate.rates={rates!r} must be {{name: number, ...}}")
        for name, value in rates.items():
            one_of("estimate.rates", name, RATES)
            if not isinstance(value, int | float) or not 0 <= value < math.inf:
                raise ValueError(f"estimate.rates.{name}={value!r} must be a number >= 0")
