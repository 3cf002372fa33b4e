"""How each of the three base models is trained."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scripted import Scripted
from torch import Tensor, nn

from configs.policy import PolicyConfig
from configs.run import RunConfig
from configs.training import TrainConfig
from contracts.protocols import WorldModel
from learners.audited import RewardSources
from learners.loop import OnStep, TrainResult, train
from learners.policy import PolicyData, PolicySources
from learners.replay_quality import start_of
from learners.reward import train_reward
from learners.selection import step_rng
from learners.world_model import WorldModelSources, train_world_model
from models.build import load_policy, load_reward, load_world_model
from models.embedded.policy import EmbeddedPolicy
from models.embedded.seen import SeenPolicy
from models.embedded.windows import Windows
from models.interfaces import Batch, Rows
from models.metrics.replay import Recording, replay

BLOCK = 1024  # windows prepared at once
SEEING = 513  # guided episodes per task, of which the encoder sees the successes
WIDE = (384, 4)  # width and layers of the head that the encoder learns with
HEAD = TrainConfig(
    9000, 192, 1e-3, 100, final_learning_rate=0.03, weight_decay=0.01, ema=0.995,
    checkpoint_every=1000,
)  # fmt: skip


class Resident:
    """``Trainable`` whose data all lie on its device, so that a step waits for no CPU."""

    version = 0

    def __init__(self, module: nn.Module, count: int, config: TrainConfig) -> None:
        self._module, self._count, self._config = module, count, config

    def module(self) -> nn.Module:
        return self._module

    def fit_statistics(self, batch: Batch) -> None:
        raise NotImplementedError("the statistics are those of the data on the device")

    def sample(self, step: int) -> Rows:
        rng = step_rng(self._config.seed, "base", step)
        rows = torch.from_numpy(rng.integers(self._count, size=self._config.batch))
        return Rows(rows.to(next(self._module.parameters()).device))

    def loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        raise NotImplementedError

    def save(self, folder: Path) -> None:
        raise NotImplementedError("whoever trains saves")

    def train(self, state: Path, on_step: OnStep) -> TrainResult:
        return train(self, self.sample, self._config, state, on_step)


class Whole(Resident):
    """A policy that clones windows with all its weights."""

    def __init__(self, policy: EmbeddedPolicy, windows: Windows, config: TrainConfig) -> None:
        super().__init__(policy.module(), len(windows.actions), config)
        self._policy, self._windows = policy, windows

    def loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        assert isinstance(batch, Rows)
        return self._policy.loss_of(self._windows.rows(batch.index), generator)


class Head(Resident):
    """The part of a policy that acts, on what its frozen encoders saw."""

    def __init__(self, seen: SeenPolicy, config: TrainConfig) -> None:
        super().__init__(seen.module(), len(seen), config)
        self.loss = seen.loss


def make_policy(config: RunConfig, played: Scripted, folder: Path) -> dict[str, Any]:
    """Learn to see by cloning what experts wanted in noise, then to act from few demonstrations,
    half of the time as the world model shows them: it will practise there.

    The first is done once, with a wider head that is thrown away: it stands for the pretraining of
    a vision-language model and of its action expert on other people's data. What acts in the end
    has seen the clean demonstrations alone.
    """
    cfg = config.policy
    sizes = replace(cfg.embedded, width=WIDE[0], layers=WIDE[1])
    seeing = replace(cfg, embedded=sizes)
    guided = [n for n in played.successes("guided") if int(n.rpartition("-")[2]) < SEEING]
    clean = played.successes("demo")
    _learn_to_see(seeing, _data(seeing, played, guided), folder)
    policy = EmbeddedPolicy(cfg, cfg.train.seed)
    policy.see_like(EmbeddedPolicy.load(seeing, folder / "wide", 0))
    policy.module().to(_device())
    size = (config.robot.height, config.robot.width)
    model = load_world_model(config.world_model, folder / "world_model", 0, size)
    result = head_of(policy, cfg, Dreamed(played, clean, model), clean).train(
        folder / "state" / "head", log_steps("head", HEAD.steps)
    )
    (folder / "policy").mkdir(exist_ok=True)
    policy.save(folder / "policy", half=True)
    load_policy(cfg, folder / "policy", 0)
    data = {"guided": len(guided), "demonstrations": len(clean)}
    return {"data": data, "losses": result.losses}


class Dreamed(Scripted):
    """Episodes whose frames after the first a world model imagines from the recorded poses."""

    def __init__(self, played: Scripted, ids: Sequence[str], model: WorldModel) -> None:
        super().__init__(played.folder)
        self.played = played
        known = [played.trajectory(name) for name in ids]
        wanted = [
            Recording(start_of(t), number, t.poses, len(t.frames) - 1)
            for number, t in enumerate(known)
        ]
        self._shown = {
            name: np.concatenate([t.frames[:1], frames])
            for name, t, frames in zip(ids, known, replay(model, wanted), strict=True)
        }

    def frames_many(self, pairs: Iterable[tuple[str, Sequence[int]]]) -> list[np.ndarray]:
        return [self._shown[name][np.asarray(rows)] for name, rows in pairs]


def head_of(policy: EmbeddedPolicy, cfg: PolicyConfig, dreamed: Dreamed, ids: list[str]) -> Head:
    """The training of what acts, from these episodes: half of the time from real frames, half of it
    from the same moments as the world model shows them."""
    shown = [_windows(policy, _data(cfg, played, ids)) for played in (dreamed.played, dreamed)]
    return Head(SeenPolicy(policy, shown, HEAD.seed), HEAD)


def _learn_to_see(cfg: PolicyConfig, data: PolicyData, folder: Path) -> None:
    policy = EmbeddedPolicy(cfg, cfg.train.seed)
    policy.fit_statistics(data.statistics())
    policy.module().to(_device())
    cloning = Whole(policy, _windows(policy, data), cfg.train)
    cloning.train(folder / "state" / "wide", log_steps("wide", cfg.train.steps))
    (folder / "wide").mkdir(exist_ok=True)
    policy.save(folder / "wide", half=True)


def _data(cfg: PolicyConfig, played: Scripted, ids: list[str]) -> PolicyData:
    return PolicyData(PolicySources(played.select(ids)), cfg.horizon, cfg.train)


def _windows(policy: EmbeddedPolicy, data: PolicyData) -> Windows:
    return Windows.joined([policy.prepare(batch) for batch in data.all(BLOCK)])


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def make_world_model(config: RunConfig, played: Scripted, folder: Path) -> dict[str, Any]:
    """All play and all guided episodes; the adapter is fitted to play, where what is recorded was
    executed."""
    cfg = config.world_model
    play, guided = played.ids("play"), played.ids("guided")
    result = train_world_model(
        cfg,
        WorldModelSources(played.select(play), played.select(guided)),
        None,
        folder / "state" / "world_model",
        folder / "world_model",
        log_steps("world model", cfg.train.steps),
    )
    size = (config.robot.height, config.robot.width)
    load_world_model(cfg, folder / "world_model", 0, size).save(folder / "world_model", half=True)
    print("world model", dict(result.numbers), flush=True)
    return {"data": {"play": len(play), "guided": len(guided)}, "losses": result.losses}


def make_reward(config: RunConfig, played: Scripted, folder: Path) -> dict[str, Any]:
    cfg = config.reward
    play, guided = played.ids("play"), played.ids("guided")
    result = train_reward(
        cfg,
        RewardSources(played.select(play + guided)),
        None,
        folder / "state" / "reward",
        folder / "reward",
        log_steps("reward", cfg.train.steps),
    )
    load_reward(cfg, folder / "reward", 0).save(folder / "reward", half=True)
    return {"data": {"play": len(play), "guided": len(guided)}, "losses": result.losses}


MAKE: dict[str, Callable[[RunConfig, Scripted, Path], dict[str, Any]]] = {
    "policy": make_policy,
    "world_model": make_world_model,
    "reward": make_reward,
}


def log_steps(name: str, total: int) -> OnStep:
    """Prints a line twenty times."""
    start, losses, share = time.monotonic(), [], max(1, total // 20)

    def on_step(step: int, loss: float) -> None:
        losses.append(loss)
        if step % share == 0:
            recent, seconds = np.mean(losses[-share:]), time.monotonic() - start
            print(f"{name} {step}/{total} loss {recent:.4f} {seconds:.0f} s", flush=True)

    return on_step
