"""LPIPS (Zhang et al. 2018, v0.1) in plain torch: the trunk from a local file, the heads from the
torchmetrics package, whose copies equal those of the lpips package."""

import importlib.resources
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float, Float64, UInt8
from torch import Tensor, nn
from torch.nn import functional

from models.metrics.weights import WeightFile, device, pick, read_state

FLAG = "replay_eval.lpips_weights"
BATCH = 64  # pictures at a time
_ALEX = ("alex", (1, 4, 7, 9, 11))  # layers whose outputs are compared
_VGG = ("vgg", (3, 8, 15, 22, 29))
_VGG_WIDTHS = (
    (3, 64, 64),
    (64, 128, 128),
    (128, 256, 256, 256),
    (256, 512, 512, 512),
    (512, 512, 512, 512),
)
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)


class Lpips:
    """Distance of pictures by the features of torchvision's AlexNet or VGG16 for ImageNet.

    ``file`` is their state dict; which of the two it is follows from its tensors. AlexNet is what
    papers report.

    Raises:
        ValueError: the file is neither.
    """

    def __init__(self, file: WeightFile) -> None:
        state = read_state(FLAG, file)
        self.net, cuts = _VGG if "features.28.weight" in state else _ALEX
        self._trunk = _vgg() if self.net == "vgg" else _alex()
        names = {f"features.{name}": t.shape for name, t in self._trunk.state_dict().items()}
        wanted = pick(FLAG, file, state, names)
        self._trunk.load_state_dict({n.removeprefix("features."): t for n, t in wanted.items()})
        self._trunk.eval().requires_grad_(False).to(device())
        self._cuts = cuts
        self._heads = [head.to(device()) for head in _heads(self.net)]

    @torch.inference_mode()
    def __call__(
        self,
        reference: UInt8[np.ndarray, "*batch height width 3"],
        other: UInt8[np.ndarray, "*batch height width 3"],
    ) -> Float64[np.ndarray, "*batch"]:
        """LPIPS of each pair; 0 for equal pictures."""
        shape = reference.shape[:-3]
        pairs = [x.reshape(-1, *x.shape[-3:]) for x in (reference, other)]
        parts = [
            self._distance(*(_normalised(x[first : first + BATCH]) for x in pairs))
            for first in range(0, len(pairs[0]), BATCH)
        ]
        return torch.cat(parts).double().cpu().numpy().reshape(shape)

    def _distance(
        self, a: Float[Tensor, "n 3 h w"], b: Float[Tensor, "n 3 h w"]
    ) -> Float[Tensor, " n"]:
        features = zip(self._features(a), self._features(b), self._heads, strict=True)
        layers = [functional.conv2d((_unit(x) - _unit(y)) ** 2, head) for x, y, head in features]
        return torch.stack([layer.mean(dim=(1, 2, 3)) for layer in layers]).sum(dim=0)

    def _features(self, x: Tensor) -> list[Tensor]:
        found = []
        for index, layer in enumerate(self._trunk):
            x = layer(x)
            if index in self._cuts:
                found.append(x)
        return found


def _normalised(images: UInt8[np.ndarray, "n height width 3"]) -> Float[Tensor, "n 3 height width"]:
    """As the lpips package does with pictures in [-1, 1]."""
    x = torch.from_numpy(images).to(device()).movedim(-1, 1).float() / 127.5 - 1
    shift, scale = (torch.tensor(value).view(1, 3, 1, 1).to(x) for value in (_SHIFT, _SCALE))
    return (x - shift) / scale


def _unit(x: Tensor) -> Tensor:
    return x / (x.square().sum(dim=1, keepdim=True).sqrt() + 1e-10)


def _alex() -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 11, stride=4, padding=2), nn.ReLU()]
    layers += [nn.MaxPool2d(3, 2), nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)]
    for before, after in pairwise((192, 384, 256, 256)):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers)


def _vgg() -> nn.Sequential:
    layers: list[nn.Module] = []
    for block, widths in enumerate(_VGG_WIDTHS):
        if block:
            layers.append(nn.MaxPool2d(2, 2))
        for before, after in pairwise(widths):
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers)


def _heads(net: str) -> list[Float[Tensor, "1 channels 1 1"]]:
    folder = importlib.resources.files("torchmetrics.functional.image") / "lpips_models"
    with importlib.resources.as_file(folder / f"{net}.pth") as path:
        state = torch.load(path, map_location="cpu", weights_only=True)
    return [state[f"lin{index}.model.1.weight"] for index in range(5)]
