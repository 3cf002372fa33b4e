"""Networks of the small policy: where an instruction looks in a view, and what to do about it."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from models.embedded.layers import start_at_zero, waves

_FINE, _COARSE = 32, 64  # channels at half and at a quarter of the view's size
_KEY, _VALUE = 32, 8  # channels that queries compare, and that they bring home
FEATURES = 5 + _VALUE  # of one point
_TIME = 64
_PEAK = 0.1  # scale of a query's best match


class PointEncoder(nn.Module):
    """A view as a few points: soft arg-max of queries that the instruction writes.

    A conv net that pools loses where things are, and where they are is what a gripper needs.
    Source: deep spatial autoencoders (Finn et al. 2016), with queries as in attention.
    """

    def __init__(self, words: int, points: int) -> None:
        super().__init__()
        self.fine = nn.Conv2d(3, _FINE, 5, stride=2, padding=2)
        self.coarse = nn.Conv2d(_FINE, _COARSE, 3, stride=2, padding=1)
        self.around = nn.Conv2d(_COARSE, _COARSE, 3, padding=1)
        self.norm_coarse, self.norm_around = nn.GroupNorm(8, _COARSE), nn.GroupNorm(8, _COARSE)
        self.of_fine = nn.Conv2d(_FINE + 3, _KEY, 1)
        self.of_coarse = nn.Conv2d(2 * _COARSE, _KEY, 1)
        self.norm = nn.GroupNorm(8, _KEY)
        self.key, self.value = nn.Conv2d(_KEY, _KEY, 1), nn.Conv2d(_KEY, _VALUE, 1)
        self.query = nn.Parameter(torch.randn(points, _KEY))
        self.asked = nn.Sequential(nn.Linear(words, 64), nn.ReLU(), nn.Linear(64, points * _KEY))

    def forward(
        self,
        images: Float[Tensor, "batch 3 height width"],
        words: Float[Tensor, "batch words"],
        height: Float[Tensor, " batch"],
    ) -> Float[Tensor, "batch features"]:
        """Of each query: place in [-1, 1], place times ``height``, best match, what is there.

        ``height`` is that of the camera: a distance on the table is one in the view times it.
        """
        cells = self._cells(images)
        query = self.query + self.asked(words).unflatten(1, self.query.shape)
        match = torch.einsum("bqk,bkrc->bqrc", query, self.key(cells))
        where = match.flatten(2).softmax(dim=-1)
        found = torch.einsum("bqs,bvs->bqv", where, self.value(cells).flatten(2))
        seen = where.view_as(match)
        x = (seen.sum(dim=2) * _axis(match.shape[3], match.device)).sum(dim=-1)
        y = (seen.sum(dim=3) * _axis(match.shape[2], match.device)).sum(dim=-1)
        best = _PEAK * match.flatten(2).amax(dim=-1)
        place = torch.stack([x, y, x * height[:, None], y * height[:, None], best], dim=-1)
        return torch.cat([place, found], dim=-1).flatten(1)

    def _cells(self, images: Tensor) -> Float[Tensor, "batch channels rows columns"]:
        fine = functional.relu(self.fine(images))
        coarse = functional.relu(self.norm_coarse(self.coarse(fine)))
        around = functional.relu(self.norm_around(self.around(coarse)))
        small = functional.interpolate(images, size=fine.shape[2:], mode="area")
        wide = self.of_coarse(torch.cat([coarse, around], dim=1))
        wide = functional.interpolate(wide, size=fine.shape[2:], mode="nearest")
        near = self.of_fine(torch.cat([fine, small], dim=1))
        return functional.relu(self.norm(near + wide))


class ChunkDenoiser(nn.Module):
    """Velocity of whole action chunks: residual layers, modulated by what is seen and the time."""

    def __init__(self, features: int, chunk: int, width: int, layers: int) -> None:
        super().__init__()
        self.seen = nn.Sequential(
            nn.Linear(features, width), nn.LayerNorm(width), nn.GELU(), nn.Linear(width, width)
        )
        self.actions, self.time = nn.Linear(chunk, width), nn.Linear(_TIME, width)
        self.layers = nn.ModuleList(_Layer(width) for _ in range(layers))
        self.out = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, chunk))

    def forward(
        self,
        actions: Float[Tensor, "batch horizon dim"],
        time: Float[Tensor, " batch"],
        seen: Float[Tensor, "batch width"],
    ) -> Float[Tensor, "batch horizon dim"]:
        """d actions / dt; ``seen`` is what ``self.seen`` made of the features.

        What the line from data to noise gives away is computed, not learned: for normal data of
        unit variance it would be the whole answer (as in EDM, Karras et al. 2022, Table 1).
        """
        at = time[:, None, None]
        spread = at**2 + (1 - at) ** 2
        hidden = self.actions((actions * spread.rsqrt()).flatten(1))
        condition = functional.silu(seen + self.time(waves(time, _TIME // 2, 1000.0)))
        for layer in self.layers:
            hidden = layer(hidden, condition)
        return (2 * at - 1) / spread * actions + self.out(hidden).view_as(actions) * spread.rsqrt()


class _Layer(nn.Module):
    """A residual feed-forward layer modulated by a condition; starts as a skip."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.film = nn.Linear(width, 2 * width)
        self.into, self.out = nn.Linear(width, width), nn.Linear(width, width)
        start_at_zero(self.out)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        gain, offset = self.film(condition).chunk(2, dim=-1)
        return x + self.out(functional.gelu(self.into(self.norm(x) * (1 + gain) + offset)))


def _axis(cells: int, device: torch.device) -> Tensor:
    """Centres of ``cells`` cells in [-1, 1]."""
    return (torch.arange(cells, device=device) + 0.5) / cells * 2 - 1
