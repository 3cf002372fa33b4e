"""Which policy acts, its widths, and how it is trained."""

from dataclasses import dataclass, field

from configs.checks import at_least, inside, one_of
from configs.remote import RemoteConfig
from configs.training import TrainConfig

POLICIES = ("embedded", "pi05", "remote")


@dataclass
class EmbeddedPolicyConfig:
    """The small flow-matching policy of the embedded scale (docs/embedded-models.md)."""

    width: int = 256
    layers: int = 3
    points: int = 32  # places in each view that the instruction's queries look at
    views: list[int] = field(default_factory=lambda: [2])  # wrist view only
    words: int = 128  # rows of the hashed instruction
    freeze_encoder: bool = False  # loaded weights: train only what acts on what is seen

    def __post_init__(self) -> None:
        for name in ("width", "layers", "points", "words"):
            at_least(f"policy.embedded.{name}", getattr(self, name), 1)
        if not self.views or set(self.views) - {0, 1, 2}:
            raise ValueError(
                f"policy.embedded.views={self.views} must name some of the views 0, 1, 2"
            )


ACTION_SPACES = ("joint_velocity", "joint_position")
LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass
class Pi05Config:
    """Widths of pi0.5 (openpi 15a9616). The defaults are tiny, scale=full sets the published."""

    vision_width: int = 48
    vision_depth: int = 2
    vision_heads: int = 4
    vision_mlp: int = 96
    image_size: int = 224
    patch_size: int = 14
    text_width: int = 64
    text_mlp: int = 128
    expert_width: int = 32
    expert_mlp: int = 64
    depth: int = 2  # of both experts: they share attention layer by layer
    heads: int = 8
    kv_heads: int = 1
    head_dim: int = 16
    vocab_size: int = 512
    action_dim: int = 32  # padded; DROID uses the first 8
    max_token_len: int = 200
    tokenizer: str = ""  # path of paligemma_tokenizer.model; "": bytes, for tiny models only
    exterior_view: int = 0  # which exterior camera the policy sees
    asset_id: str = "droid"  # norm_stats.json lies in assets/<asset_id>/ of a checkpoint
    augment: bool = True  # openpi's crop, rotation and colour jitter while training
    recompute: bool = False  # gradient checkpointing of every layer; scale=full needs it
    dtype: str = "float32"  # of the network while acting; openpi serves in bfloat16
    action_space: str = "joint_velocity"  # joint_position: trained as deltas, openpi's full recipe
    lora_rank: int = 0  # 0: train all weights; else adapters in both language models and the heads
    lora_alpha: int = 16  # adapters are scaled by lora_alpha / lora_rank
    lora_targets: list[str] = field(default_factory=lambda: list(LORA_TARGETS))

    def __post_init__(self) -> None:
        one_of("policy.pi05.dtype", self.dtype, ("float32", "bfloat16"))
        one_of("policy.pi05.action_space", self.action_space, ACTION_SPACES)
        at_least("policy.pi05.lora_rank", self.lora_rank, 0)
        at_least("policy.pi05.lora_alpha", self.lora_alpha, 1)
        for target in self.lora_targets:
            one_of("policy.pi05.lora_targets", target, LORA_TARGETS)
        one_of("policy.pi05.exterior_view", str(self.exterior_view), ("0", "1"))
        at_least("policy.pi05.action_dim", self.action_dim, 8)
        for name, divisor in (
            ("image_size", self.patch_size),
            ("vision_width", self.vision_heads),
            ("heads", self.kv_heads),
            ("head_dim", 2),  # rotary halves
            ("expert_width", 2),  # sines and cosines of the time embedding
        ):
            value = vars(self)[name]
            if value % divisor:
                raise ValueError(f"policy.pi05.{name}={value} must be a multiple of {divisor}")


@dataclass
class IdleConfig:
    """openpi's filter of idle ticks for DROID (``replay/idle.py``). People pause; the policy that
    learns the pauses stops for good. Simulated experts do not pause."""

    origins: list[str] = field(default_factory=lambda: ["recorded"])  # which trajectories; []: none
    still: float = 1e-3  # a tick is idle if no joint velocity changed by this much or more
    idle: int = 7  # ticks; shorter pauses stay
    moving: int = 16  # ticks; shorter motions go, too
    tail: int = 10  # ticks cut off the end of each motion

    def __post_init__(self) -> None:
        for origin in self.origins:
            one_of("policy.idle.origins", origin, ("real", "demo", "recorded", "imagined"))
        for name in ("idle", "moving"):
            at_least(f"policy.idle.{name}", getattr(self, name), 1)
        at_least("policy.idle.tail", self.tail, 0)
        at_least("policy.idle.still", self.still, 0)


def check_noise(flag: str, noise: float, kind: str) -> None:
    """Raises ValueError for a scale that a policy of this kind cannot act with."""
    at_least(flag, noise, 0)
    if kind == "remote" and noise != 1:
        raise ValueError(f"{flag}={noise}: a policy server draws its own noise. Leave it at 1")


@dataclass
class PolicyConfig:
    kind: str = "embedded"
    checkpoint: str = "base"  # a folder; "base": committed with the code; "scratch": fresh weights
    horizon: int = 15  # ticks that one chunk plans
    execute: int = 12  # ticks of a chunk that are executed before the next decision
    flow_steps: int = 5  # Euler steps from noise to actions
    noise: float = 1.0  # scale of the noise that an acting policy begins with; 0: always its mode
    embedded: EmbeddedPolicyConfig = field(default_factory=EmbeddedPolicyConfig)
    pi05: Pi05Config = field(default_factory=Pi05Config)
    remote: RemoteConfig = field(default_factory=RemoteConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    idle: IdleConfig = field(default_factory=IdleConfig)

    def __post_init__(self) -> None:
        one_of("policy.kind", self.kind, POLICIES)
        at_least("policy.flow_steps", self.flow_steps, 1)
        check_noise("policy.noise", self.noise, self.kind)
        if self.kind == "remote" and self.checkpoint not in ("", "base"):
            raise ValueError(
                f"policy.checkpoint={self.checkpoint} is not read with policy=remote: its weights "
                "are where its server is. Leave it out"
            )
        if not 1 <= self.execute <= self.horizon:
            raise ValueError(
                f"policy.execute={self.execute} must lie in 1..policy.horizon={self.horizon}"
            )
        inside("policy.horizon", self.horizon, 0, 101)
