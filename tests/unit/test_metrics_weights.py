"""Metrics with weights: Frechet closed forms, LPIPS by hand, and no number without a file."""

import hashlib
import math
import re

import numpy as np
import pytest
import torch

from models.metrics.features import FidFeatures, FvdFeatures
from models.metrics.frechet import TooFewError, frechet_distance
from models.metrics.inception import InceptionFeatures, resized
from models.metrics.lpips import Lpips
from models.metrics.weights import UnavailableError, find, read_state


def moments(samples: np.ndarray, mean: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """The samples, moved so that they have exactly this mean and covariance."""
    white = samples - samples.mean(axis=0)
    white = white @ np.linalg.inv(np.linalg.cholesky(np.cov(white.T))).T
    return white @ np.linalg.cholesky(covariance).T + mean


@pytest.fixture
def samples() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(50, 3)), rng.normal(size=(40, 3))


def test_frechet_of_diagonal_normals(samples):
    """|(1, 2, 2)|^2 + (1 - 2)^2 + (2 - 2)^2 + (3 - 1)^2 = 9 + 5."""
    first = moments(samples[0], np.zeros(3), np.diag([1.0, 4.0, 9.0]))
    second = moments(samples[1], np.array([1.0, 2.0, 2.0]), np.diag([4.0, 4.0, 1.0]))
    assert frechet_distance(first, second) == pytest.approx(14.0, abs=1e-9)


def test_frechet_of_normals_that_do_not_commute(samples):
    """tr (S1 S2)^(1/2) of 2 x 2 is sqrt(tr(S1 S2) + 2 sqrt(det S1 det S2))."""
    s1, s2 = np.array([[2.0, 1.0], [1.0, 3.0]]), np.array([[5.0, -2.0], [-2.0, 1.0]])
    overlap = math.sqrt(np.trace(s1 @ s2) + 2 * math.sqrt(5.0 * 1.0))
    expected = 1 + 5 + 6 - 2 * overlap
    first = moments(samples[0][:, :2], np.zeros(2), s1)
    second = moments(samples[1][:, :2], np.array([1.0, 0.0]), s2)
    assert frechet_distance(first, second) == pytest.approx(expected, abs=1e-9)


def test_frechet_with_fewer_samples_than_features():
    """The covariances have rank 15 and 19 of 60; their square root by eigenvalues."""
    rng = np.random.default_rng(1)
    first, second = rng.normal(size=(16, 60)), 2 * rng.normal(size=(20, 60)) + 0.3
    s1, s2 = np.cov(first.T), np.cov(second.T)
    values, vectors = np.linalg.eigh(s1)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    overlap = np.sqrt(np.linalg.eigvalsh(root @ s2 @ root).clip(min=0)).sum()
    apart = ((first.mean(axis=0) - second.mean(axis=0)) ** 2).sum()
    expected = apart + np.trace(s1) + np.trace(s2) - 2 * overlap
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-6)


def test_equal_sets_are_no_distance_apart_whatever_their_scale():
    rng = np.random.default_rng(2)
    features = (1e3 + rng.normal(size=(30, 8))).astype(np.float32)
    assert frechet_distance(features, features[::-1]) == pytest.approx(0.0, abs=1e-8)


def test_too_few_samples_are_no_distance():
    few, many = np.zeros((15, 4)), np.zeros((99, 4))
    with pytest.raises(TooFewError, match="15 samples, needs 16 or more"):
        frechet_distance(many, few)
    with pytest.raises(ValueError, match="not finite"):
        frechet_distance(np.full((20, 4), np.nan), np.zeros((20, 4)))


def test_no_file_no_metric():
    with pytest.raises(UnavailableError, match=r"no weights: set replay_eval\.x=<file>"):
        find("replay_eval.x", "")
    with pytest.raises(ValueError, match="there is no such file"):
        find("replay_eval.x", "/nowhere/alexnet-owt-7be5be79.pth")


def test_a_file_that_is_not_what_its_name_promises(tmp_path):
    content = b"weights"
    total = hashlib.sha256(content).hexdigest()
    good, bad = tmp_path / f"net-{total[:8]}.pth", tmp_path / "net-00000000.pth"
    good.write_bytes(content)
    bad.write_bytes(content)
    assert find("f", str(good)).sha256 == total
    with pytest.raises(ValueError, match=f"promises the sha256 00000000.*has {total[:8]}"):
        find("f", str(bad))


def test_unreadable_and_foreign_files(tmp_path):
    path = tmp_path / "x.pth"
    path.write_bytes(b"no archive")
    with pytest.raises(ValueError, match="no readable state dict"):
        read_state("f", find("f", str(path)))
    with pytest.raises(ValueError, match="no readable TorchScript"):
        FvdFeatures(find("f", str(path)))
    torch.save({"features.0.weight": torch.zeros(64, 3, 11, 11)}, path)
    with pytest.raises(ValueError, match=re.escape("has no tensor 'features.0.bias'")):
        Lpips(find("f", str(path)))
    torch.save({"features.0.weight": torch.full((2,), math.nan)}, path)
    with pytest.raises(ValueError, match=r"not finite: features\.0\.weight"):
        Lpips(find("f", str(path)))
    torch.save({"features.0.weight": torch.zeros(64, 3, 3, 3)}, path)
    with pytest.raises(ValueError, match=r"shape \(64, 3, 3, 3\), not \(64, 3, 11, 11\)"):
        Lpips(find("f", str(path)))


@pytest.fixture(scope="module")
def alex(tmp_path_factory):
    """AlexNet's shapes. Every layer passes on one channel: the mean grey level, where positive."""
    widths = [
        (0, 3, 64, 11),
        (3, 64, 192, 5),
        (6, 192, 384, 3),
        (8, 384, 256, 3),
        (10, 256, 256, 3),
    ]
    state = {}
    for index, before, after, side in widths:
        weight = torch.zeros(after, before, side, side)
        weight[0, : 3 if index == 0 else 1, side // 2, side // 2] = 1.0
        weight[1, :1, side // 2, side // 2] = 0.5 if index == 0 else 0.0
        bias = torch.zeros(after)
        bias[2] = 1.0  # so that no feature vector is zero
        state |= {f"features.{index}.weight": weight, f"features.{index}.bias": bias}
    path = tmp_path_factory.mktemp("weights") / "alexnet.pth"
    torch.save(state | {"classifier.1.weight": torch.zeros(3)}, path)
    return path


def test_lpips_of_flat_pictures_by_hand(alex):
    """Flat pictures give the first layer the channels (sum of the three, half of the first, 1),
    later ones (that sum, 0, 1). Each layer adds sum_c head_c (unit(a)_c - unit(b)_c)^2."""
    lpips = Lpips(find("f", str(alex)))
    assert lpips.net == "alex"
    level = {"a": 255, "b": 200}
    images = {name: np.full((1, 64, 64, 3), value, np.uint8) for name, value in level.items()}
    heads = [head.flatten().double().numpy() for head in lpips._heads]
    shift, scale = np.array([-0.030, -0.088, -0.188]), np.array([0.458, 0.448, 0.450])
    seen = {name: (value / 127.5 - 1 - shift) / scale for name, value in level.items()}
    expected = 0.0
    for layer, head in enumerate(heads):
        units = {}
        for name, x in seen.items():
            vector = np.array([x.sum(), 0.5 * x[0] if layer == 0 else 0.0, 1.0])
            units[name] = vector / np.linalg.norm(vector)
        expected += float(head[:3] @ (units["a"] - units["b"]) ** 2)
    assert expected > 1e-4
    assert lpips(images["a"], images["b"])[0] == pytest.approx(expected, rel=1e-5)
    assert lpips(images["a"], images["a"])[0] == 0.0


def test_lpips_keeps_the_batch(alex):
    lpips = Lpips(find("f", str(alex)))
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 256, (2, 2, 3, 48, 48, 3), dtype=np.uint8)
    whole = lpips(a, b)
    assert whole.shape == (2, 3)
    assert whole[1, 2] == pytest.approx(lpips(a[1, 2], b[1, 2]).item(), rel=1e-6)


def test_resize_like_tensorflow_1():
    """Output pixel k is at k * 2 / 299: from level 0 to level 128 and held at the end."""
    ramp = torch.tensor([0.0, 128.0]).view(1, 1, 1, 2).expand(1, 3, 2, 2)
    out = resized(ramp)
    assert out.shape == (1, 3, 299, 299)
    at = np.minimum(np.arange(299) * 2 / 299, 1.0)
    np.testing.assert_allclose(out[0, 1, 7].numpy(), at - 1, atol=1e-6)


def test_inception_has_the_published_tensors():
    """torch-fidelity's file has 94 convolutions with their norms, 21,785,568 weights
    without the classifier, which is not needed."""
    with torch.device("meta"):
        net = InceptionFeatures()
    state = net.state_dict()
    assert sum(name.endswith("conv.weight") for name in state) == 94
    assert sum(p.numel() for p in net.parameters()) == 21_785_568
    assert state["Mixed_6b.branch7x7dbl_2.conv.weight"].shape == (128, 128, 7, 1)
    assert state["Mixed_7c.branch3x3dbl_3a.bn.running_var"].shape == (384,)


class _Mean(torch.nn.Module):
    """Stands for the two TorchScript files: the mean over everything but channels."""

    def forward(
        self, x: torch.Tensor, rescale: bool = True, resize: bool = True,
        return_features: bool = False,
    ) -> torch.Tensor:  # fmt: skip
        assert return_features
        return x.float().flatten(2).mean(dim=2)


def test_scripts_see_levels_and_channels_first(tmp_path):
    path = tmp_path / "script.pt"
    torch.jit.script(_Mean()).save(str(path))
    images = np.zeros((12, 8, 8, 3), np.uint8)
    images[..., 1] = np.arange(12)[:, None, None]
    file = find("f", str(path))
    np.testing.assert_allclose(FidFeatures(file)(images)[:, 1], np.arange(12))
    np.testing.assert_allclose(FvdFeatures(file)(images), [0, 5.5, 0])
    with pytest.raises(ValueError, match="10 frames or more, got 9"):
        FvdFeatures(file)(images[:9])
