"""The models that a config names; each family is imported only when it is chosen."""

from collections.abc import Iterable
from pathlib import Path

from configs.policy import PolicyConfig
from configs.reward import RewardConfig
from configs.world_model import WorldModelConfig
from contracts.protocols import Policy, PoseAdapter
from models.adapter import FittedAdapter
from models.grip_sight import GripSight, SeeingAdapter
from models.interfaces import (
    PolicyBatch,
    Trainable,
    TrainablePolicy,
    TrainableReward,
    TrainableWorldModel,
)
from models.shipped_adapter import ShippedAdapter


def _policy_class(kind: str):
    match kind:
        case "embedded":
            from models.embedded.policy import EmbeddedPolicy  # noqa: PLC0415

            return EmbeddedPolicy
        case "pi05":
            from models.pi05.policy import Pi05Policy  # noqa: PLC0415

            return Pi05Policy
    raise ValueError(f"policy.kind={kind!r} has no model: choose embedded or pi05")


def _world_model_class(kind: str):
    match kind:
        case "embedded":
            from models.embedded.world_model import EmbeddedWorldModel  # noqa: PLC0415

            return EmbeddedWorldModel
        case "ctrl_world":
            from models.ctrl_world.world_model import CtrlWorldModel  # noqa: PLC0415

            return CtrlWorldModel
    raise ValueError(f"world_model.kind={kind!r} has no model: choose embedded or ctrl_world")


def _reward_class(kind: str):
    match kind:
        case "embedded":
            from models.embedded.reward import EmbeddedReward  # noqa: PLC0415

            return EmbeddedReward
        case "qwen":
            from models.qwen_reward.reward import QwenReward  # noqa: PLC0415

            return QwenReward
    raise ValueError(f"reward.kind={kind!r} has no model: choose embedded or qwen")


def build_policy(cfg: PolicyConfig, seed: int) -> TrainablePolicy:
    """A policy with fresh weights; equal seeds give equal weights."""
    return _policy_class(cfg.kind)(cfg, seed=seed)


def see_once(
    cfg: PolicyConfig, policy: TrainablePolicy, batches: Iterable[PolicyBatch], seed: int
) -> Trainable | None:
    """What learns by ``Rows`` of these windows, in their order, where the policy is of a kind whose
    frozen part can look at them beforehand; None where it must learn from the batches."""
    if cfg.kind != "embedded":
        return None
    from models.embedded.seen import see_once  # noqa: PLC0415

    return see_once(policy, batches, seed)  # pyright: ignore[reportArgumentType] - of that kind


def load_policy(cfg: PolicyConfig, folder: Path, version: int) -> TrainablePolicy:
    """The policy stored in ``folder``. Raises ValueError where it does not fit the config."""
    return _policy_class(cfg.kind).load(cfg, folder, version)


def load_acting_policy(cfg: PolicyConfig, folder: Path, version: int) -> Policy:
    """Whoever decides: the policy stored in ``folder``, or the server that it names."""
    if cfg.kind == "remote":
        from models.remote.policy import OpenpiPolicy  # noqa: PLC0415

        return OpenpiPolicy.load(cfg, folder, version)
    return load_policy(cfg, folder, version)


def build_world_model(
    cfg: WorldModelConfig, frame_size: tuple[int, int], seed: int
) -> TrainableWorldModel:
    """A world model with fresh weights for views of (height, width) pixels."""
    return _world_model_class(cfg.kind)(cfg, frame_size=frame_size, seed=seed)


def load_world_model(
    cfg: WorldModelConfig, folder: Path, version: int, frame_size: tuple[int, int]
) -> TrainableWorldModel:
    """The world model stored in ``folder``, which knows its frame size.

    Raises:
        ValueError: it does not fit the config, or was trained on views of another size.
    """
    model = _world_model_class(cfg.kind).load(cfg, folder, version)
    if model.frame_size != frame_size:
        raise ValueError(
            f"{folder} was trained on views of {model.frame_size} pixels, the robot's are "
            f"{frame_size}: set robot.height and robot.width, or world_model.checkpoint=scratch"
        )
    return model


def build_reward(cfg: RewardConfig, seed: int) -> TrainableReward:
    """A reward model with fresh weights (``qwen``: the checkpoint that the config names)."""
    return _reward_class(cfg.kind)(cfg, seed=seed)


def load_reward(cfg: RewardConfig, folder: Path, version: int) -> TrainableReward:
    """The reward model stored in ``folder``. Raises ValueError where it does not fit."""
    return _reward_class(cfg.kind).load(cfg, folder, version)


def load_adapter(cfg: WorldModelConfig, folder: Path) -> PoseAdapter:
    """The adapter fitted and saved into ``folder``, or Ctrl-World's where the config says so; with
    the eye for the gripper that was saved there, if there is one.

    Raises:
        ValueError: there is no such file.
    """
    shipped = cfg.adapter == "shipped"
    arm = ShippedAdapter(Path(cfg.adapter_path)) if shipped else FittedAdapter.load(folder)
    sight = GripSight.load(folder)
    return arm if sight is None else SeeingAdapter(arm, sight)
