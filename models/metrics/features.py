"""Features of frames (Inception, for FID) and of clips (I3D, for FVD), from local weight files."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

from models.metrics.inception import InceptionFeatures, resized
from models.metrics.weights import WeightFile, device, read_script, read_state

FID_FLAG, FVD_FLAG = "replay_eval.inception_weights", "replay_eval.i3d_weights"
BATCH = 32  # pictures at a time
MIN_CLIP = 10  # frames that I3D needs


class FidFeatures:
    """2048 features of a picture by the Inception network that FID is defined with.

    ``file`` is its state dict (``weights-inception-2015-12-05-6726825d.pth`` of torch-fidelity, or
    pytorch-fid's ``pt_inception-2015-12-05-6726825d.pth``, the same tensors), or, ending in
    ``.pt``, the TorchScript ``inception-2015-12-05.pt`` of NVIDIA's StyleGAN repositories.

    Raises:
        ValueError: the file is neither.
    """

    def __init__(self, file: WeightFile) -> None:
        self._script: Any = None
        if file.path.suffix == ".pt":
            self._script = read_script(FID_FLAG, file).to(device())
        else:
            net = InceptionFeatures.load(FID_FLAG, file, read_state(FID_FLAG, file))
            self._net = net.to(device())

    @torch.inference_mode()
    def __call__(
        self, images: UInt8[np.ndarray, "n height width 3"]
    ) -> Float32[np.ndarray, "n features"]:
        parts = [
            self._batch(torch.from_numpy(images[first : first + BATCH]).to(device()).movedim(-1, 1))
            for first in range(0, len(images), BATCH)
        ]
        return torch.cat(parts).cpu().numpy()

    def _batch(self, x: Tensor) -> Tensor:
        if self._script is not None:
            return self._script(x, return_features=True).float()
        return self._net(resized(x.float()))


class FvdFeatures:
    """400 features of a clip by the Kinetics-400 I3D as TorchScript (``i3d_torchscript.pt``, the
    file of StyleGAN-V and cd-fvd), which rescales and resizes by itself.

    Raises:
        ValueError: the file is no TorchScript.
    """

    def __init__(self, file: WeightFile) -> None:
        self._script = read_script(FVD_FLAG, file).to(device())

    @torch.inference_mode()
    def __call__(
        self, clip: UInt8[np.ndarray, "time height width 3"]
    ) -> Float32[np.ndarray, " features"]:
        """Raises ValueError for clips of fewer than 10 frames."""
        if len(clip) < MIN_CLIP:
            raise ValueError(f"I3D needs clips of {MIN_CLIP} frames or more, got {len(clip)}")
        x = torch.from_numpy(clip).to(device()).movedim(-1, 0)[None].float()
        found = self._script(x, rescale=True, resize=True, return_features=True)
        return found[0].float().cpu().numpy()
