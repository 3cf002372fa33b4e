"""Ctrl-World's published file: read lean, refused with a reason, written back for upstream."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from cluster.latents import encoder_folder
from cluster.world_model_export import export_world_model
from configs.world_model import CtrlWorldConfig, WorldModelConfig
from models.ctrl_world.checkpoint import export, load_state, read_state, save_safetensors
from models.ctrl_world.network import CtrlWorldNetwork
from models.ctrl_world.world_model import CtrlWorldModel

TINY = CtrlWorldConfig(
    block_channels=[32, 32], heads=[1, 1], layers_per_block=1, vae_channels=[32, 32]
)
UNUSED_BYTES = 2**24


@pytest.fixture(scope="module")
def network() -> CtrlWorldNetwork:
    torch.manual_seed(0)
    return CtrlWorldNetwork(TINY)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory, network: CtrlWorldNetwork) -> Path:
    """What upstream saves: all five prefixes, the unused encoder between the others."""
    own = {name: tensor.half().float() for name, tensor in network.state_dict().items()}
    state = {
        **{name: t for name, t in own.items() if name.startswith("unet.")},
        "image_encoder.vision_model.weight": torch.ones(UNUSED_BYTES // 4),
        "text_encoder.text_projection.weight": torch.full((2,), 2.0),
        "text_encoder.text_model.embeddings.position_ids": torch.arange(77),
        **{name: t for name, t in own.items() if not name.startswith("unet.")},
    }
    path = tmp_path_factory.mktemp("published") / "checkpoint-10000.pt"
    torch.save(state, path)
    return path


def resident_bytes(path: Path) -> int:
    """How much of a mapped file this process holds in memory, by the kernel's account."""
    total, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0]:
            inside = line.endswith(str(path))
        elif inside and line.startswith("Rss:"):
            total += 1024 * int(line.split()[1])
    return total


def test_loading_never_touches_the_unused_encoder(
    published: Path, network: CtrlWorldNetwork
) -> None:
    state = read_state(published)
    assert set(state) == set(network.state_dict()) | {"text_encoder.text_projection.weight"}
    other = CtrlWorldNetwork(TINY)
    load_state(other, state)
    used = sum(tensor.nbytes for tensor in state.values())
    assert used / 2 < resident_bytes(published) < used + UNUSED_BYTES / 4  # and some read-ahead
    state["unused"] = torch.load(published, mmap=True)["image_encoder.vision_model.weight"]
    assert state["unused"].sum() == UNUSED_BYTES / 4
    assert resident_bytes(published) > UNUSED_BYTES  # the measure sees what is touched
    weight = other.unet.conv_in.weight
    assert torch.equal(weight, network.unet.conv_in.weight.half().float())


def test_export_is_the_published_file_with_the_trained_tensors(
    tmp_path: Path, published: Path, network: CtrlWorldNetwork
) -> None:
    trained = CtrlWorldNetwork(TINY)
    load_state(trained, read_state(published))
    with torch.no_grad():
        trained.unet.conv_in.bias += 1
    save_safetensors(trained, tmp_path / "model.safetensors")
    assert (
        export(tmp_path / "model.safetensors", published, tmp_path / "out" / "checkpoint.pt") == 1
    )
    before = torch.load(published, weights_only=True)
    after = torch.load(tmp_path / "out" / "checkpoint.pt", weights_only=True)
    assert list(after) == list(before)
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert changed == ["unet.conv_in.bias"]
    assert torch.equal(after["unet.conv_in.bias"], before["unet.conv_in.bias"] + 1)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["checkpoint.pt"]
    saved = load_file(tmp_path / "model.safetensors")
    assert set(saved) == set(network.state_dict())


def test_export_job_writes_statistics_beside_the_weights(tmp_path: Path) -> None:
    cfg = WorldModelConfig(kind="ctrl_world", checkpoint=str(tmp_path / "v1"), ctrl_world=TINY)
    model = CtrlWorldModel(cfg, (64, 64), seed=1)
    (tmp_path / "v1").mkdir()
    model.save(tmp_path / "v1")
    torch.save(dict(model.network.state_dict()), tmp_path / "base.pt")
    with pytest.raises(ValueError, match=r"world_model\.ctrl_world\.published is not set"):
        export_world_model(cfg, tmp_path / "out")
    cfg.ctrl_world.published = str(tmp_path / "base.pt")
    try:
        written = export_world_model(cfg, tmp_path / "out")
    finally:
        cfg.ctrl_world.published = ""
    assert (written.parent / "stat.json").read_text() == (tmp_path / "v1/stat.json").read_text()
    again = torch.load(written, weights_only=True)
    assert all(torch.equal(again[name], t) for name, t in model.network.state_dict().items())


def test_a_training_of_something_else_is_not_exported(
    tmp_path: Path, published: Path, network: CtrlWorldNetwork
) -> None:
    other = CtrlWorldNetwork(CtrlWorldConfig(**{**vars(TINY), "vae_channels": [32, 64]}))
    save_safetensors(other, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"is not a training of .*tensors are not in it"):
        export(tmp_path / "other.safetensors", published, tmp_path / "no.pt")
    assert not (tmp_path / "no.pt").exists()


def changed(network: CtrlWorldNetwork, **changes: Tensor | None) -> dict[str, Tensor]:
    state = dict(network.state_dict())
    for key, tensor in changes.items():
        name = key.replace("__", ".")
        del state[name]
        if tensor is not None:
            state[name] = tensor
    return state


def test_missing_and_unknown_tensors_are_listed(network: CtrlWorldNetwork) -> None:
    state = changed(network, unet__conv_in__bias=None, unet__conv_out__bias=None)
    with pytest.raises(
        ValueError, match=r"2 tensors are missing \(unet\.conv_in\.bias, unet\.conv_out\.bias\)"
    ):
        load_state(network, state)
    many = {f"module.{name}": tensor for name, tensor in network.state_dict().items()}
    with pytest.raises(ValueError, match=r"module\.action_encoder.* and \d+ more"):
        load_state(network, many)


def test_other_widths_are_named(network: CtrlWorldNetwork) -> None:
    state = changed(network, unet__conv_in__bias=torch.zeros(7))
    with pytest.raises(ValueError, match=r"1 shapes differ \(unet\.conv_in\.bias is \(7,\).*32,\)"):
        load_state(network, state)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_numbers_are_refused_and_the_network_kept(
    network: CtrlWorldNetwork, value: float
) -> None:
    broken = torch.ones(32)
    broken[5] = value
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(ValueError, match=r"in 1 tensors \(unet\.conv_in\.bias\)"):
        load_state(network, changed(network, unet__conv_in__bias=broken))
    assert all(torch.equal(before[name], t) for name, t in network.state_dict().items())


def test_eight_bit_floats_are_asked_too(network: CtrlWorldNetwork) -> None:
    broken = torch.full((32,), float("nan")).to(torch.float8_e4m3fn)
    with pytest.raises(ValueError, match="NaN or infinite"):
        load_state(network, changed(network, unet__conv_in__bias=broken))
    load_state(
        CtrlWorldNetwork(TINY),
        changed(network, unet__conv_in__bias=torch.ones(32).to(torch.float8_e4m3fn)),
    )


@pytest.mark.parametrize("keep", [0, 100, 0.5, 0.999])
def test_truncated_files_are_named(tmp_path: Path, published: Path, keep: float) -> None:
    whole = published.read_bytes()
    torn = tmp_path / "torn.pt"
    torn.write_bytes(whole[: int(keep if keep >= 1 else keep * len(whole))])
    with pytest.raises(ValueError, match=r"torn\.pt \(\d+ bytes\) is no whole checkpoint"):
        read_state(torn)


def test_truncated_safetensors_are_named(tmp_path: Path, network: CtrlWorldNetwork) -> None:
    save_safetensors(network, tmp_path / "torn.safetensors")
    whole = (tmp_path / "torn.safetensors").read_bytes()
    (tmp_path / "torn.safetensors").write_bytes(whole[:-100])
    with pytest.raises(ValueError, match=r"torn\.safetensors .* is no whole checkpoint"):
        read_state(tmp_path / "torn.safetensors")


class Harmful:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return (open, ("/nowhere/at/all",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"unet.conv_in.bias": Harmful()}, "is no whole checkpoint"),
        ({"state_dict": {"a": torch.ones(1)}}, r"not tensors by name \(state_dict\)"),
        ([torch.ones(1)], "holds a list"),
    ],
)
def test_only_tensors_by_name_are_read(tmp_path: Path, content: object, message: str) -> None:
    torch.save(content, tmp_path / "odd.pt")
    with pytest.raises(ValueError, match=message):
        read_state(tmp_path / "odd.pt")


def test_files_that_are_not_there_or_too_many(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no checkpoint at"):
        read_state(tmp_path / "absent.pt")
    for name in ("a.pt", "b.pt"):
        (tmp_path / name).touch()
    cfg = WorldModelConfig(kind="ctrl_world", ctrl_world=TINY)
    with pytest.raises(ValueError, match=r"2 \.pt files"):
        CtrlWorldModel.load(cfg, tmp_path, version=0)


@pytest.mark.parametrize(
    "changes",
    [{"checkpoint": "scratch"}, {"kind": "embedded", "checkpoint": "base"}],
)
def test_latents_of_an_untrained_encoder_are_not_extracted(changes: dict) -> None:
    with pytest.raises(ValueError, match="has no trained image encoder"):
        encoder_folder(WorldModelConfig(**{"kind": "ctrl_world", **changes}))
