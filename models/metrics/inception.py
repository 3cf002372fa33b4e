"""The Inception v3 of FID (the TensorFlow graph of 2015-12-05) in plain torch: 2048 features.

It differs from torchvision's: averages leave the padding out, the last block takes a maximum. Names
are those of torch-fidelity's and pytorch-fid's state dicts, so either file loads.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from models.metrics.weights import WeightFile, pick

SIZE = 299  # pixels of the input's sides
_SEVEN, _SEVEN_UP = (1, 7), (7, 1)
_THREE, _THREE_UP = (1, 3), (3, 1)


class _Conv(nn.Module):
    """Convolution that keeps the size unless it strides, batch norm, ReLU."""

    def __init__(
        self, before: int, after: int, kernel: int | tuple[int, int] = 1, stride: int = 1
    ) -> None:
        super().__init__()
        sides = (kernel, kernel) if isinstance(kernel, int) else kernel
        same = (sides[0] // 2, sides[1] // 2) if stride == 1 else (0, 0)
        self.conv = nn.Conv2d(before, after, sides, stride, same, bias=False)
        self.bn = nn.BatchNorm2d(after, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.bn(self.conv(x)))


def _average(x: Tensor) -> Tensor:
    return functional.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


class _A(nn.Module):
    def __init__(self, width: int, pool: int) -> None:
        super().__init__()
        self.branch1x1 = _Conv(width, 64)
        self.branch5x5_1, self.branch5x5_2 = _Conv(width, 48), _Conv(48, 64, 5)
        self.branch3x3dbl_1 = _Conv(width, 64)
        self.branch3x3dbl_2, self.branch3x3dbl_3 = _Conv(64, 96, 3), _Conv(96, 96, 3)
        self.branch_pool = _Conv(width, pool)

    def forward(self, x: Tensor) -> Tensor:
        twice = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        five = self.branch5x5_2(self.branch5x5_1(x))
        return torch.cat([self.branch1x1(x), five, twice, self.branch_pool(_average(x))], 1)


class _B(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.branch3x3 = _Conv(width, 384, 3, stride=2)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = _Conv(width, 64), _Conv(64, 96, 3)
        self.branch3x3dbl_3 = _Conv(96, 96, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        twice = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), twice, functional.max_pool2d(x, 3, stride=2)], 1)


class _C(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.branch1x1 = _Conv(width, 192)
        self.branch7x7_1 = _Conv(width, inner)
        self.branch7x7_2 = _Conv(inner, inner, _SEVEN)
        self.branch7x7_3 = _Conv(inner, 192, _SEVEN_UP)
        self.branch7x7dbl_1 = _Conv(width, inner)
        self.branch7x7dbl_2 = _Conv(inner, inner, _SEVEN_UP)
        self.branch7x7dbl_3 = _Conv(inner, inner, _SEVEN)
        self.branch7x7dbl_4 = _Conv(inner, inner, _SEVEN_UP)
        self.branch7x7dbl_5 = _Conv(inner, 192, _SEVEN)
        self.branch_pool = _Conv(width, 192)

    def forward(self, x: Tensor) -> Tensor:
        seven = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        twice = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        twice = self.branch7x7dbl_5(self.branch7x7dbl_4(twice))
        return torch.cat([self.branch1x1(x), seven, twice, self.branch_pool(_average(x))], 1)


class _D(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.branch3x3_1, self.branch3x3_2 = _Conv(width, 192), _Conv(192, 320, 3, stride=2)
        self.branch7x7x3_1, self.branch7x7x3_2 = _Conv(width, 192), _Conv(192, 192, _SEVEN)
        self.branch7x7x3_3 = _Conv(192, 192, _SEVEN_UP)
        self.branch7x7x3_4 = _Conv(192, 192, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        seven = self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x)))
        three = self.branch3x3_2(self.branch3x3_1(x))
        return torch.cat(
            [three, self.branch7x7x3_4(seven), functional.max_pool2d(x, 3, stride=2)], 1
        )


class _E(nn.Module):
    def __init__(self, width: int, maximum: bool) -> None:
        super().__init__()
        self.branch1x1 = _Conv(width, 320)
        self.branch3x3_1 = _Conv(width, 384)
        self.branch3x3_2a = _Conv(384, 384, _THREE)
        self.branch3x3_2b = _Conv(384, 384, _THREE_UP)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = _Conv(width, 448), _Conv(448, 384, 3)
        self.branch3x3dbl_3a = _Conv(384, 384, _THREE)
        self.branch3x3dbl_3b = _Conv(384, 384, _THREE_UP)
        self.branch_pool = _Conv(width, 192)
        self._maximum = maximum

    def forward(self, x: Tensor) -> Tensor:
        three = self.branch3x3_1(x)
        twice = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        pooled = functional.max_pool2d(x, 3, stride=1, padding=1) if self._maximum else _average(x)
        parts = [self.branch1x1(x), self.branch3x3_2a(three), self.branch3x3_2b(three)]
        parts += [self.branch3x3dbl_3a(twice), self.branch3x3dbl_3b(twice)]
        return torch.cat([*parts, self.branch_pool(pooled)], 1)


class InceptionFeatures(nn.Module):
    """(n, 3, 299, 299) pictures in [-1, 1] to (n, 2048) features."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = _Conv(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = _Conv(32, 32, 3)
        self.Conv2d_2a_3x3.conv.padding = (0, 0)
        self.Conv2d_2b_3x3 = _Conv(32, 64, 3)
        self.Conv2d_3b_1x1 = _Conv(64, 80)
        self.Conv2d_4a_3x3 = _Conv(80, 192, 3)
        self.Conv2d_4a_3x3.conv.padding = (0, 0)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = _A(192, 32), _A(256, 64), _A(288, 64)
        self.Mixed_6a = _B(288)
        self.Mixed_6b, self.Mixed_6c = _C(768, 128), _C(768, 160)
        self.Mixed_6d, self.Mixed_6e = _C(768, 160), _C(768, 192)
        self.Mixed_7a = _D(768)
        self.Mixed_7b, self.Mixed_7c = _E(1280, maximum=False), _E(2048, maximum=True)

    @classmethod
    def load(cls, flag: str, file: WeightFile, state: dict[str, Tensor]) -> "InceptionFeatures":
        """Raises ValueError where ``state`` lacks a tensor or has it in another shape."""
        net = cls()
        shapes = {name: tensor.shape for name, tensor in net.state_dict().items()}
        counters = [name for name in shapes if name.endswith("num_batches_tracked")]
        state = state | {name: torch.tensor(0) for name in counters}  # some files lack them
        net.load_state_dict(pick(flag, file, state, shapes))
        return net.eval().requires_grad_(False)

    def forward(self, x: Float[Tensor, "n 3 299 299"]) -> Float[Tensor, "n 2048"]:
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_3b_1x1(functional.max_pool2d(x, 3, stride=2))
        x = functional.max_pool2d(self.Conv2d_4a_3x3(x), 3, stride=2)
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x)))
        x = self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))
        x = self.Mixed_7a(self.Mixed_6e(self.Mixed_6d(x)))
        return self.Mixed_7c(self.Mixed_7b(x)).mean(dim=(2, 3))


def resized(images: Float[Tensor, "n 3 height width"]) -> Float[Tensor, "n 3 299 299"]:
    """Levels 0..255 of any size as the TensorFlow 1 graph takes them: (x - 128) / 128, bilinear.

    Output pixel k lies at ``k * size / 299`` of the input (no half-pixel centres, no antialias).
    """
    rows, columns = (_weights(size).to(images.device) for size in images.shape[-2:])
    return (rows @ images @ columns.T - 128) / 128


def _weights(size: int) -> Float[Tensor, "299 size"]:
    at = torch.arange(SIZE) * size / SIZE
    low = at.floor().long().clamp(max=size - 1)
    high = (low + 1).clamp(max=size - 1)
    part = (at - low).float()
    matrix = torch.zeros(SIZE, size)
    index = torch.arange(SIZE)
    matrix.index_put_((index, low), 1 - part, accumulate=True)
    matrix.index_put_((index, high), part, accumulate=True)
    return matrix
