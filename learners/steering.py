"""DSRL: soft actor-critic over the noise of a flow policy that is not trained any more."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import gymnasium
import numpy as np
import torch
from jaxtyping import Float32
from stable_baselines3 import SAC
from stable_baselines3.common.logger import Logger

from configs.method import SteeringConfig
from configs.policy import PolicyConfig
from contracts.constants import NO_VERSION, TICKS_PER_FRAME
from contracts.seeds import fold
from learners.loop import OnStep, TrainResult, device_of, shard
from learners.policy import action_window
from learners.selection import Episodes, Selection, commit, save_weights
from models.embedded.policy import EmbeddedPolicy
from models.embedded.steering import Steering
from models.interfaces import PolicyBatch

_ENTROPY = "auto_0.1"  # its weight at first; with SAC's 1 it drowns a reward of at most 1
_ROUND = 50  # gradient steps between two reports


@dataclass(frozen=True, slots=True)
class SteeringSources:
    """Labelled real episodes, successes and failures, and the folders of the policies that played
    them, by version: what noise they took follows from these and the episodes' seeds."""

    real: Selection
    policies: Mapping[int, Path]


@dataclass(frozen=True, slots=True)
class Decisions:
    """The decisions of one episode, in order. ``noise`` is the scaled mean of each."""

    features: Float32[np.ndarray, "decision features"]
    noise: Float32[np.ndarray, "decision 8"]
    success: bool


def decisions(cfg: PolicyConfig, sources: SteeringSources) -> Iterator[Decisions]:
    """What was seen at every decision, and which noise was taken there.

    Raises:
        ValueError: decisions were not taken where there are frames, or an episode has no label.
    """
    if cfg.execute % TICKS_PER_FRAME:
        raise ValueError(
            f"method=dsrl learns from the frames at decisions: policy.execute={cfg.execute} must "
            f"be a multiple of {TICKS_PER_FRAME}, the ticks between frames"
        )
    episodes = Episodes(sources.real)
    policies: dict[int, EmbeddedPolicy] = {}
    for number, row in enumerate(episodes.rows):
        if row.label is None:
            raise ValueError(
                f"{row.id} carries no label: method=dsrl learns from labelled episodes"
            )
        version = row.provenance.policy_version
        if version not in policies:
            policies[version] = EmbeddedPolicy.load(cfg, sources.policies[version], version)
        ticks = range(0, row.num_ticks, cfg.execute)
        frames = episodes.frames([(number, [tick // TICKS_PER_FRAME for tick in ticks])])[0]
        batch = PolicyBatch(
            images=frames,
            joint_position=np.stack([row.joint_position[tick] for tick in ticks]),
            gripper_position=np.stack([row.gripper_position[tick] for tick in ticks]),
            instructions=[row.instruction] * len(ticks),
            actions=np.stack([action_window(row.actions, tick, cfg.horizon) for tick in ticks]),
            weight=np.ones(len(ticks), np.float32),
        )
        seeds = [fold(row.provenance.seed, k) for k in range(len(ticks))]
        features, noise = policies[version].choices(batch, seeds)
        yield Decisions(features.numpy(), noise.numpy(), row.label.success)


class _Spaces(gymnasium.Env):
    """SAC wants an environment; ours is a robot that has acted already."""

    def __init__(self, features: int, dim: int) -> None:
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (features,), np.float32)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (dim,), np.float32)


def train_steering(
    cfg: PolicyConfig,
    steering: SteeringConfig,
    sources: SteeringSources,
    out_folder: Path,
    on_step: OnStep,
) -> TrainResult:
    """Learn whom of its possible noises the policy of version 0 should take, and write both.

    A success is worth 1 at its last decision, everything else nothing. Short: after a crash it
    begins again, with the same outcome.

    Raises:
        ValueError: there is no episode, or no successful one.
    """
    start = time.monotonic()
    torch.set_num_threads(cfg.train.threads)
    known = list(decisions(cfg, sources))
    if not any(one.success for one in known):
        raise ValueError(
            f"none of the {len(known)} real episodes succeeded: SAC has nothing to steer towards; "
            "collect more (each_task.rollouts)"
        )
    model = _sac(known, steering, cfg.train.seed, device_of(cfg.train))
    losses: list[float] = []
    while len(losses) < steering.steps:
        count = min(_ROUND, steering.steps - len(losses))
        model.train(count, steering.batch)
        losses += [float(model.logger.name_to_value["train/critic_loss"])] * count
        on_step(len(losses), losses[-1])
    policy = EmbeddedPolicy.load(cfg, sources.policies[0], NO_VERSION)
    policy.steering = _exported(model, steering)
    if shard()[0] == 0:
        commit(save_weights(policy, out_folder), out_folder)
    seconds = time.monotonic() - start
    return TrainResult(tuple(losses), 0, seconds, kept_step=len(losses))


def _sac(known: list[Decisions], steering: SteeringConfig, seed: int, device: torch.device) -> SAC:
    """SAC with all transitions in its buffer."""
    width = [steering.width, steering.width]
    total = sum(len(one.noise) for one in known)
    model = SAC(
        "MlpPolicy",
        _Spaces(known[0].features.shape[1], known[0].noise.shape[1]),
        learning_rate=steering.learning_rate,
        buffer_size=total,
        gamma=steering.discount,
        ent_coef=_ENTROPY,
        policy_kwargs={"net_arch": width},
        seed=seed % 2**32,
        device=device,
    )
    model.set_logger(Logger(None, []))
    buffer = model.replay_buffer
    assert buffer is not None
    for one in known:
        taken = (one.noise / steering.bound).clip(-1, 1)
        for k, features in enumerate(one.features):
            last = k == len(one.features) - 1
            after = features if last else one.features[k + 1]
            reward = np.array([float(last and one.success)], np.float32)
            buffer.add(features, after, taken[k], reward, np.array([last]), [{}])
    return model


def _exported(model: SAC, steering: SteeringConfig) -> Steering:
    """The actor as the policy's own module."""
    actor = model.actor
    layers = [layer for layer in actor.latent_pi if isinstance(layer, torch.nn.Linear)]
    dim = model.action_space.shape
    assert dim is not None
    found = Steering(layers[0].in_features, dim[0], steering.width, steering.bound)
    with torch.no_grad():
        found.hidden[0].load_state_dict(layers[0].state_dict())
        found.hidden[2].load_state_dict(layers[1].state_dict())
        found.mean.load_state_dict(actor.mu.state_dict())
        found.log_std.load_state_dict(actor.log_std.state_dict())  # pyright: ignore
    return found
