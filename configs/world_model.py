"""Which world model dreams, its widths, and how it is trained."""

from dataclasses import dataclass, field

from configs.checks import at_least, inside, one_of
from configs.training import TrainConfig

WORLD_MODELS = ("embedded", "ctrl_world")


@dataclass
class EmbeddedWorldModelConfig:
    """A 2-D EDM UNet on fixed linear patch latents (docs/embedded-models.md)."""

    channels: list[int] = field(default_factory=lambda: [80, 128])
    blocks: int = 1
    patch: int = 8
    latent: int = 48  # principal components kept of each patch
    sampler_steps: int = 1
    sigma_max: float = 32.0
    start_noise: float = 0.25  # share of sigma_max's noise that sampling starts with; 0: the mean
    log_sigma_mean: float = 1.4
    log_sigma_std: float = 1.1
    history_noise: float = 0.3  # at most, on known frames while training, in residual std

    def __post_init__(self) -> None:
        flag = "world_model.embedded"
        at_least(f"{flag}.blocks", self.blocks, 1)
        at_least(f"{flag}.sampler_steps", self.sampler_steps, 1)
        at_least(f"{flag}.start_noise", self.start_noise, 0)
        if not self.channels or any(width % 8 for width in self.channels):
            raise ValueError(
                f"{flag}.channels={self.channels} must be multiples of 8: the groups of a norm"
            )
        if not 1 <= self.latent <= 3 * self.patch**2:
            raise ValueError(
                f"{flag}.latent={self.latent} must lie in 1..{3 * self.patch**2}, the pixels of a "
                f"patch of {flag}.patch={self.patch}"
            )


@dataclass
class CtrlWorldConfig:
    """Widths of Ctrl-World (4c713d1). Defaults are tiny; scale=full sets the published ones."""

    block_channels: list[int] = field(default_factory=lambda: [32, 32, 64, 64])
    heads: list[int] = field(default_factory=lambda: [2, 2, 4, 4])
    layers_per_block: int = 2
    context_dim: int = 64  # cross-attention width; one token per frame
    time_embed_dim: int = 32  # of each of the three added ids
    text_width: int = 64
    text_mlp: int = 0  # hidden width of its feed-forward layers; 0: four times text_width
    text_layers: int = 2
    text_heads: int = 4
    text_projection: int = 32  # half of context_dim: the text embedding is tiled twice
    text_vocab: int = 49408
    tokenizer: str = ""  # folder with CLIP's vocab.json and merges.txt; "": text is not used
    vae_channels: list[int] = field(default_factory=lambda: [32, 32, 64, 64])
    vae_layers: int = 1
    sampler_steps: int = 50
    guidance: float = 2.0
    official_decode: bool = False  # decode in chunks of 7 across views, as upstream does
    history_ids: list[int] = field(default_factory=lambda: [0, 0, -8, -6, -4, -2])
    # ^ chunks that condition the next one: -1 is the current frame, 0 the first frame ever. The
    # default is upstream's for 0.8 s chunks; its policy script has [0, 0, -12, -9, -6, -3]
    windows: str = "rollout"  # of training: as imagination looks back, or as upstream draws them
    dtype: str = "float32"  # of the network while imagining; upstream imagines in bfloat16
    batch_slots: int = 1  # trajectories per evaluation; 1: the same bits in any company
    cache_latents: bool = False  # before training, encode each stored frame once and keep that
    latents_dtype: str = "float32"  # of kept latents; float16 halves them and rounds
    latent_videos: str = ""  # recordings in Ctrl-World's layout whose latents are kept instead
    published: str = ""  # job=export_world_model: the .pt that the training began with
    gradient_checkpointing: bool = False  # recompute activations: slower, fits large widths

    def __post_init__(self) -> None:
        flag = "world_model.ctrl_world"
        one_of(f"{flag}.dtype", self.dtype, ("float32", "bfloat16"))
        one_of(f"{flag}.windows", self.windows, ("rollout", "upstream"))
        one_of(f"{flag}.latents_dtype", self.latents_dtype, ("float32", "float16"))
        at_least(f"{flag}.batch_slots", self.batch_slots, 1)
        at_least(f"{flag}.sampler_steps", self.sampler_steps, 1)
        at_least(f"{flag}.guidance", self.guidance, 1)
        if 2 * self.text_projection != self.context_dim:
            raise ValueError(
                f"{flag}.text_projection={self.text_projection} must be half of "
                f"{flag}.context_dim={self.context_dim}: the text embedding is tiled twice"
            )
        if any(width % 32 for width in (*self.block_channels, *self.vae_channels)):
            raise ValueError(
                f"{flag}.block_channels={self.block_channels} and {flag}.vae_channels="
                f"{self.vae_channels} must be multiples of 32: the width of a group norm"
            )
        if len(self.history_ids) != 6 or any(
            chunk != 0 and not -24 <= chunk <= -2 for chunk in self.history_ids
        ):
            raise ValueError(
                f"{flag}.history_ids={self.history_ids} must be six of 0 (the first frame) "
                "and -24..-2 (chunks back; -1 is the current frame)"
            )


@dataclass
class WorldModelConfig:
    kind: str = "embedded"
    checkpoint: str = "base"  # a folder; "base": committed with the code; "scratch": fresh weights
    history: int = 6
    cotrain_weight: float = 1.0  # lambda of Eq. 2: weight of the loss on D_DROID
    adapter: str = "fitted"  # joint velocity -> joints: fitted on D_real, or shipped (Ctrl-World's)
    adapter_path: str = ""  # safetensors of the shipped adapter
    replay_episodes: int = 8  # real episodes per replay evaluation (PSNR, SSIM)
    replay_chunks: int = 5
    validate_every: int = 0  # training steps between replays of held-out real episodes; 0: never
    validate_share: float = 0.1  # of the real episodes that are held out for it
    validate_patience: int = 0  # end training after so many without a new best; 0: never
    validate_keep: str = "best"  # which weights are published: best (highest PSNR) or last
    embedded: EmbeddedWorldModelConfig = field(default_factory=EmbeddedWorldModelConfig)
    ctrl_world: CtrlWorldConfig = field(default_factory=CtrlWorldConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        one_of("world_model.kind", self.kind, WORLD_MODELS)
        one_of("world_model.adapter", self.adapter, ("fitted", "shipped"))
        at_least("world_model.validate_every", self.validate_every, 0)
        at_least("world_model.validate_patience", self.validate_patience, 0)
        inside("world_model.validate_share", self.validate_share, 0, 1)
        one_of("world_model.validate_keep", self.validate_keep, ("best", "last"))
        at_least("world_model.cotrain_weight", self.cotrain_weight, 0)
        if self.history != 6:
            raise ValueError(f"world_model.history={self.history}: both world models use 6")
        if self.adapter == "shipped" and not self.adapter_path:
            raise ValueError("world_model.adapter=shipped needs world_model.adapter_path=<file>")
