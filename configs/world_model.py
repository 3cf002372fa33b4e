"""Which world model dreams, its widths, and how it is trained."""

from dataclasses import dataclass, field

from configs.checks import at_least, one_of
from configs.training import TrainConfig

WORLD_MODELS = ("embedded", "ctrl_world")


@dataclass
class EmbeddedWorldModelConfig:
    """A 2-D EDM UNet on fixed linear patch latents (docs/embedded-models.md)."""

    channels: list[int] = field(default_factory=lambda: [48, 64, 96])
    blocks: int = 1
    patch: int = 8
    latent: int = 48  # principal components kept of each patch
    sampler_steps: int = 1
    sigma_max: float = 8.0
    log_sigma_mean: float = 1.4
    log_sigma_std: float = 1.1


@dataclass
class CtrlWorldConfig:
    """Widths of Ctrl-World (commit 4c713d1). Defaults are tiny; scale=full sets the published ones."""

    block_channels: list[int] = field(default_factory=lambda: [32, 32, 64, 64])
    heads: list[int] = field(default_factory=lambda: [2, 2, 4, 4])
    layers_per_block: int = 2
    context_dim: int = 64  # cross-attention width; one token per frame
    time_embed_dim: int = 32  # of each of the three added ids
    text_width: int = 64
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


@dataclass
class WorldModelConfig:
    kind: str = "embedded"
    checkpoint: str = ""  # folder of the base model; "": the one committed with the code
    history: int = 6
    cotrain_weight: float = 1.0  # lambda of Eq. 2: weight of the loss on D_DROID
    adapter: str = "fitted"  # joint velocity -> joints: fitted on D_real, or shipped (Ctrl-World's)
    adapter_path: str = ""  # safetensors of the shipped adapter
    replay_episodes: int = 8  # real episodes per replay evaluation (PSNR, SSIM)
    replay_chunks: int = 5
    embedded: EmbeddedWorldModelConfig = field(default_factory=EmbeddedWorldModelConfig)
    ctrl_world: CtrlWorldConfig = field(default_factory=CtrlWorldConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        one_of("world_model.kind", self.kind, WORLD_MODELS)
        one_of("world_model.adapter", self.adapter, ("fitted", "shipped"))
        at_least("world_model.cotrain_weight", self.cotrain_weight, 0)
        if self.history != 6:
            raise ValueError(f"world_model.history={self.history}: both world models use 6")
        if self.adapter == "shipped" and not self.adapter_path:
            raise ValueError("world_model.adapter=shipped needs world_model.adapter_path=<file>")
