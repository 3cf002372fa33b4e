"""Ctrl-World against tensors that the public repository's own code made (PARITY_DIR)."""

import json
import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import CLIPTokenizer

from configs.world_model import CtrlWorldConfig, WorldModelConfig
from models.ctrl_world.autoencoder import decode, decode_clips, encode, posterior
from models.ctrl_world.checkpoint import load_state, read_state
from models.ctrl_world.diffusion import (
    Conditions,
    Sampler,
    TrainingDraws,
    karras_sigmas,
    sample,
    sampling_steps,
    training_input,
    training_loss,
)
from models.ctrl_world.history import (
    PoseRange,
    history_positions,
    pose_table,
    upstream_offsets,
)
from models.ctrl_world.latents import LATENT_SCALE, split_views, stack_views, to_uint8
from models.ctrl_world.network import CtrlWorldNetwork
from models.ctrl_world.world_model import CtrlWorldModel, Slot

pytestmark = pytest.mark.parity
REPO = Path(__file__).parents[2]
PARITY = Path(os.environ.get("PARITY_DIR", REPO.parent / "shared" / "parity"))
FOLDER = PARITY / "ctrl_world_tiny"
HISTORY_TABLES = ("list_index", "history_tag", "current_tag")
SHARED = Path(os.environ.get("VLAW_SHARED", REPO.parent / "shared"))
SHAPES = SHARED / "reference" / "ctrl_world_state_dict_shapes.json"


class Golden:
    """Stored tensors, and the comparison that the fixture's README prescribes for each name."""

    def __init__(self) -> None:
        self.readme = json.loads((FOLDER / "README.json").read_text())
        self.tensors = load_file(FOLDER / "cases.safetensors")

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.tensors[name]

    def names(self, pattern: str) -> dict[str, str]:
        """Stored tensors whose whole name matches -> what the pattern's group matched in it."""
        found = {name: re.fullmatch(pattern, name) for name in self.tensors}
        matched = {name: match[1] for name, match in found.items() if match}
        assert matched, pattern
        return matched

    def check(self, name: str, got: torch.Tensor) -> None:
        expected = self.tensors[name]
        assert got.shape == expected.shape, name
        if expected.dtype == torch.uint8:
            difference = (got.int() - expected.int()).abs()
            assert difference.max() <= 1, name
            assert (difference > 0).float().mean() <= 0.01, name
            return
        tolerances = self.readme["tolerances"]
        prefix = max(
            (key for key in tolerances if name.startswith(key)), key=len, default="default"
        )
        bound = tolerances[prefix] if expected.is_floating_point() else {"atol": 0, "rtol": 0}
        excess = (got.double() - expected.double()).abs() - bound["rtol"] * expected.double().abs()
        assert excess.max() <= bound["atol"], (name, float(excess.max()))


def closed_loop_steps(readme: dict) -> int:
    """Told in words only: "...; 3 steps, guidance 2"."""
    found = re.search(r"(\d+) steps, guidance 2\b", readme["tensors"]["g.latents"]["what"])
    assert found
    return int(found[1])


def tiny_config(readme: dict) -> WorldModelConfig:
    unet, vae, text = (readme["config"][part] for part in ("unet", "vae", "text_encoder"))
    return WorldModelConfig(
        kind="ctrl_world",
        ctrl_world=CtrlWorldConfig(
            block_channels=unet["block_out_channels"],
            heads=unet["num_attention_heads"],
            layers_per_block=unet["layers_per_block"],
            context_dim=unet["cross_attention_dim"],
            time_embed_dim=unet["addition_time_embed_dim"],
            text_width=text["hidden_size"],
            text_mlp=text["intermediate_size"],
            text_layers=text["num_hidden_layers"],
            text_heads=text["num_attention_heads"],
            text_projection=text["projection_dim"],
            text_vocab=text["vocab_size"],
            tokenizer=str(FOLDER / "tokenizer"),
            vae_channels=vae["block_out_channels"],
            vae_layers=vae["layers_per_block"],
            sampler_steps=closed_loop_steps(readme),
            history_ids=readme["config"]["repo_args"]["history_idx"],
            official_decode=True,
        ),
    )


@pytest.fixture(scope="module")
def golden() -> Golden:
    torch.set_num_threads(1)
    return Golden()


@pytest.fixture(scope="module")
def model(golden: Golden) -> CtrlWorldModel:
    height, width = golden.readme["config"]["tiny_sizes"]["view_pixels"]
    made = CtrlWorldModel(tiny_config(golden.readme), (height, width), seed=0)
    load_state(made.network, published_names())
    return made


def published_names() -> dict[str, torch.Tensor]:
    """The two weight files hold one state dict; the stored eight-bit floats are lossless."""
    parts = (read_state(FOLDER / name) for name in ("model.safetensors", "vae.safetensors"))
    return {name: tensor.float() for part in parts for name, tensor in part.items()}


def draws(golden: Golden) -> TrainingDraws:
    stored = (
        golden[f"c.draw.{name}"]
        for name in ("u_cond", "eps_cond", "u_drop", "n_sigma", "eps", "n_hist", "eps_hist")
    )
    u_cond, eps_cond, u_drop, n_sigma, eps, n_hist, eps_hist = stored
    return TrainingDraws(
        u_cond.flatten(), eps_cond, u_drop, n_sigma.flatten(), eps, n_hist[..., 0, 0, 0], eps_hist
    )


@pytest.mark.shared
def test_every_published_name_and_shape_is_the_full_size_network() -> None:
    published = json.loads(SHAPES.read_text())
    cfg = CtrlWorldConfig(
        block_channels=[320, 640, 1280, 1280],
        heads=[5, 10, 20, 20],
        context_dim=1024,
        time_embed_dim=256,
        text_width=512,
        text_layers=12,
        text_heads=8,
        text_projection=512,
        tokenizer="clip-vit-base-patch32",
        vae_channels=[128, 256, 512, 512],
        vae_layers=2,
    )
    with torch.device("meta"):
        network = CtrlWorldNetwork(cfg)
    ours = {name: list(tensor.shape) for name, tensor in network.state_dict().items()}
    needed = {k: v for k, v in published.items() if not k.startswith("image_encoder.")}
    assert ours == needed
    assert len(published) - len(needed) == 520
    count = sum(p.numel() for p in network.unet.parameters())
    assert count == 1_524_623_082


def test_tokenizer_gives_the_stored_ids(golden: Golden) -> None:
    tokenizer = CLIPTokenizer.from_pretrained(FOLDER / "tokenizer")
    meta = golden.readme["meta"]
    for group, texts in {
        "a": meta["a.texts"],
        "d": meta["d.texts"],
        "g": [meta["g.text"]],
    }.items():
        tokens = tokenizer(texts, padding="max_length", max_length=77, truncation=True)
        assert tokens["input_ids"] == golden[f"{group}.input_ids"].tolist()
        if f"{group}.attention_mask" in golden.tensors:
            assert tokens["attention_mask"] == golden[f"{group}.attention_mask"].tolist()


def test_pose_normalisation(golden: Golden) -> None:
    normalise = PoseRange().normalise
    golden.check("stat.state_01", torch.tensor(PoseRange().low, dtype=torch.float64))
    golden.check("stat.state_99", torch.tensor(PoseRange().high, dtype=torch.float64))
    golden.check("f.norm_f32", torch.from_numpy(normalise(golden["f.raw"].numpy())))
    for group in ("a", "d"):
        raw = golden[f"{group}.raw_states"].numpy()
        golden.check(f"{group}.action", torch.from_numpy(normalise(raw)))


def test_context_is_the_pose_token_plus_the_text(golden: Golden, model: CtrlWorldModel) -> None:
    network = model.network
    with torch.no_grad():
        text = network.embed_text(golden["a.input_ids"])
        golden.check("a.text_embeds", text)
        golden.check("a.out_text", network.context(golden["a.action"], text))
        golden.check("a.out_notext", network.context(golden["a.action"], None))
        text = network.embed_text(golden["d.input_ids"])
        golden.check("d.text_token", network.context(golden["d.action"], text))


@pytest.mark.parametrize(
    ("out", "context"),
    [("b.out", "b.encoder_hidden_states"), ("b.out_1tok", "b.encoder_hidden_states_1tok")],
)
def test_unet(golden: Golden, model: CtrlWorldModel, out: str, context: str) -> None:
    with torch.no_grad():
        got = model.network(
            golden["b.sample"], golden["b.timestep"], golden[context], golden["b.added_time_ids"]
        )
    golden.check(out, got)


def test_which_frames_a_token_reaches(golden: Golden, model: CtrlWorldModel) -> None:
    for name, frame in golden.names(r"b\.probe_dframe(\d+)").items():
        changed = golden["b.encoder_hidden_states"].clone()
        changed[:, int(frame)] += 1
        with torch.no_grad():
            got = model.network(
                golden["b.sample"], golden["b.timestep"], changed, golden["b.added_time_ids"]
            )
        golden.check(name, (got - golden["b.out"]).abs().mean((0, 2, 3, 4)))


def test_training_input(golden: Golden, model: CtrlWorldModel) -> None:
    with torch.no_grad():
        text = model.network.embed_text(golden["c.input_ids"])
        context = model.network.context(golden["c.action"], text)
        step = training_input(golden["c.latent"], context, draws(golden))
        out = model.network(step.sample, step.time, step.context, step.ids)
    golden.check("c.c1.unet_in_latent", step.sample[:, :, :4])
    for frame in range(step.sample.shape[1]):
        golden.check("c.c1.unet_in_cond", step.sample[:, frame, 4:])
    golden.check("c.c1.timestep", step.time)
    golden.check("c.c1.context", step.context)
    golden.check("c.c1.added_time_ids", step.ids)
    golden.check("c.c1.unet_out", out)


def upstream_loss(golden: Golden, network: CtrlWorldNetwork, case: str) -> torch.Tensor:
    text = None if case == "c3_notext" else network.embed_text(golden["c.input_ids"])
    drawn = draws(golden)
    if case == "c2_nodrop":
        drawn = replace(drawn, keep=torch.full_like(drawn.keep, 0.5))
    if case == "c3_notext":  # found from its loss: this case drops the other sample's context
        drawn = replace(drawn, keep=drawn.keep.flip(0))
    context = network.context(golden["c.action"], text)
    return training_loss(network, golden["c.latent"], context, drawn).mean()


@pytest.mark.parametrize("case", ["c1", "c2_nodrop", "c3_notext"])
def test_training_loss_and_gradients(golden: Golden, model: CtrlWorldModel, case: str) -> None:
    network = model.network
    network.zero_grad()
    loss = upstream_loss(golden, network, case)
    golden.check(f"c.{case}.loss", loss.detach()[None])
    loss.backward()
    trained = {n: p for n, p in network.named_parameters() if p.requires_grad}
    grads = {name: trained[name].grad for name in sorted(trained)}
    norms = torch.stack([g.norm() for g in grads.values() if g is not None])
    golden.check(f"c.{case}.gradnorms_all", norms)
    golden.check(f"c.{case}.gradnorm_total", norms.norm()[None])
    for name, parameter in golden.names(rf"c\.{case}\.gradnorm\.(.+)").items():
        grad = grads[parameter]
        assert grad is not None
        golden.check(name, grad.norm()[None])
    for name in (key for key in golden.tensors if key.startswith(f"c.{case}.grad.")):
        grad = grads[name.removeprefix(f"c.{case}.grad.")]
        assert grad is not None
        golden.check(name, grad)


def test_four_optimiser_steps(golden: Golden, model: CtrlWorldModel) -> None:
    network = CtrlWorldNetwork(model.cfg)
    load_state(network, published_names())
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-3)
    losses = []
    for _ in range(len(golden["c.adamw3.losses"])):
        loss = upstream_loss(golden, network, "c1")
        losses.append(loss.detach())
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
    golden.check("c.adamw3.losses", torch.stack(losses))


def test_noise_levels(golden: Golden) -> None:
    for name, steps in golden.names(r"d\.sigmas_(\d+)").items():
        sigmas = karras_sigmas(int(steps))
        golden.check(name, sigmas)
        golden.check(f"d.timesteps_{steps}", sigmas[:-1].log() / 4)
        golden.check("d.init_noise_sigma", (sigmas[:1] ** 2 + 1).sqrt())


def sampling(golden: Golden, case: str) -> tuple[Conditions, Sampler, torch.Tensor]:
    told = golden.readme["case_parameters"]["d"][case]
    first, last = map(int, re.findall(r"\d+", told["samples"]))
    token = golden["d.text_token" if told["frame_level_cond"] else "d.text_token_1tok"]
    rows = slice(first, last)
    given = Conditions(golden["d.history"][rows], golden["d.image"][rows], token[rows])
    sampler = Sampler(
        told["num_inference_steps"],
        float(told["max_guidance_scale"]),
        condition_history=not told.get("his_cond_zero", False),
    )
    return given, sampler, golden["d.noise"][rows]


def test_sampler(golden: Golden, model: CtrlWorldModel) -> None:
    cases = golden.readme["case_parameters"]["d"]
    for case in (c for c, told in cases.items() if told["output_type"] == "latent"):
        given, sampler, noise = sampling(golden, case)
        with torch.no_grad():
            states = list(sampling_steps(model.network, given, noise, sampler))
        golden.check(f"d.{case}.latents", states[-1])
        if f"d.{case}.latents_steps" in golden.tensors:
            golden.check(f"d.{case}.latents_steps", torch.stack(states[:-1]))


def test_what_the_sampler_tells_the_network(golden: Golden, model: CtrlWorldModel) -> None:
    """The first call: last history and current frame, ids, no context for the first half."""
    given, sampler, noise = sampling(golden, "d2_g2")
    calls: list[tuple[torch.Tensor, ...]] = []

    def listen(*told: torch.Tensor) -> torch.Tensor:
        calls.append(told)
        return model.network(*told)

    with torch.no_grad():
        sample(listen, given, noise, sampler)
    inputs, _, context, ids = calls[0]
    past = given.history.shape[1]
    for half in inputs.chunk(2):
        golden.check("d.d2_g2.unet_in0", half[:, past - 1 : past + 1])
    golden.check("d.d2_g2.added_time_ids", ids)
    assert not context[: len(context) // 2].any()
    assert torch.equal(context[len(context) // 2 :], given.context)
    assert len(calls) == sampler.steps


def test_decode_of_one_tall_image(golden: Golden, model: CtrlWorldModel) -> None:
    given, sampler, noise = sampling(golden, "d6_pt")
    with torch.no_grad():
        latents = sample(model.network, given, noise, sampler)[0]
    frames = (decode_clips(model.network.vae, latents, len(latents)) / 2 + 0.5).clamp(0, 1)
    golden.check("d.d6_pt.frames_s4", frames[None, :, :, ::4, ::4])


def test_decode_schedules(golden: Golden, model: CtrlWorldModel) -> None:
    latents = golden["d.d2_g2.latents"][0]
    official = decode(model.network.vae, latents, official=True).transpose(0, 1)
    golden.check("d.d2_wm.decoded_s4", official[..., ::4, ::4])
    golden.check("d.d2_wm.frames_u8_s4", to_uint8(official)[:, :, ::4, ::4])
    golden.check("d.d2_wm.frame4_u8", to_uint8(official)[:, -1])
    per_view = decode(model.network.vae, latents).transpose(0, 1)
    golden.check("d.d2_wm.decoded_perview_s4", per_view[..., ::4, ::4])


def test_encode(golden: Golden, model: CtrlWorldModel) -> None:
    frames = golden["h.frames_u8"].transpose(0, 1).contiguous()  # frames first
    noise = stack_views(golden["h.noise"].transpose(0, 1))
    latents = encode(model.network.vae, frames, noise)
    golden.check("h.latents", split_views(latents).transpose(0, 1))
    moments = posterior(model.network.vae, frames) / LATENT_SCALE
    golden.check("h.mean_view0", split_views(moments[:, 0])[:, 0])
    golden.check("h.std_view0", split_views(moments[:, 1])[:, 0])


def test_training_windows_of_the_data_set(golden: Golden) -> None:
    """Forty windows, equally likely: the data set's draws p < 0.15 and skip in {1, 2}."""
    windows = np.array(upstream_offsets())
    assert windows.shape == (40, 11)
    for number, told in enumerate(golden.readme["case_parameters"]["f.items"]):
        still, skip = told["p"] < 0.15, told["skip"]
        mine = [row for row in windows if row[7] == skip and (not row[:6].any()) == still]
        assert len(mine) == (3 if still else 17)
        stored = golden[f"f.item{number}.rgb_id"].numpy()
        # The end of an episode shows in a stored window only where that is clipped.
        last = stored.max() if stored[-1] == stored[-2] else stored.max() + 1
        for row in mine:
            assert np.clip(told["frame_now"] + row, 0, last).tolist() == stored.tolist()
        assert [3 * frame for frame in stored] == told["state_id"]


@pytest.mark.parametrize("script", ["pi", "replay", "keyb"])
def test_history_choice(golden: Golden, script: str) -> None:
    """Upstream's list begins with 24 copies of the first frame; ours holds it once."""
    ids = golden.readme["case_parameters"]["f.hist"][script]["history_idx"]
    stored = {name: golden[f"f.hist.{script}.{name}"].tolist() for name in HISTORY_TABLES}
    for chunk, current in enumerate(stored["current_tag"]):
        positions = history_positions(chunk + 1, ids)
        copies = stored["list_index"][chunk]
        assert [max(0, index - 23) for index in copies] == positions
        # position k > 0 is the last frame that chunk k - 1 predicted, tagged 100 k + 4
        tags = [100 * p + 4 if p else 0 for p in [*positions, chunk]]
        assert tags == [*stored["history_tag"][chunk], current]


def test_poses_of_a_replay_are_the_recorded_rows_of_its_frames(golden: Golden) -> None:
    ids = golden.readme["case_parameters"]["f.hist"]["replay"]["history_idx"]
    seen: list[np.ndarray] = []
    for chunk, rows in enumerate(golden["f.hist.replay.gt_rows"]):
        poses = (rows - golden["f.hist.replay.gt_rows"][0, 0]).double()[:, None].expand(-1, 7)
        table = pose_table([*seen, poses[0].numpy()], ids, poses.numpy())
        assert table[:, 0].tolist() == golden["f.hist.replay.action_tag"][chunk].tolist()
        seen.append(poses[0].numpy())


def test_poses_of_a_policy_rollout_are_those_of_its_chunks(golden: Golden) -> None:
    """Pose 4 of a chunk, tagged 100 (c + 1) + 4, is pose 0 of the next, which this code keeps."""
    ids = golden.readme["case_parameters"]["f.hist"]["pi"]["history_idx"]
    seen: list[np.ndarray] = []
    for chunk, expected in enumerate(golden["f.hist.pi.action_tag"].tolist()):
        past = len(ids)
        tags = np.array(expected[past:], np.float64)[:, None].repeat(7, axis=1)
        first = np.zeros(7) if chunk == 0 else tags[0]
        table = pose_table([*seen, first], ids, tags)
        begun = [tag + 96 if tag else 0 for tag in expected[:past]]
        assert table[:, 0].tolist() == begun + expected[past:]
        seen.append(first)


def test_closed_loop(golden: Golden, model: CtrlWorldModel) -> None:
    ids = model.cfg.history_ids
    slot = Slot(0, golden.readme["meta"]["g.text"], [golden["g.first_latent"]])
    for chunk, noise in enumerate(golden["g.noise"]):
        poses = golden["g.state_fk_skip"][chunk].numpy()
        table = pose_table([*slot.poses, poses[0]], ids, poses)
        np.testing.assert_allclose(table, golden["g.action_cond_raw"][chunk], rtol=0, atol=2e-6)
        latents = model.predict([slot], poses[None], noise)[0]
        slot.remember(poses, latents)
        expected = golden["g.latents"][chunk].transpose(0, 1)
        torch.testing.assert_close(split_views(latents), expected, atol=1e-4, rtol=1e-5)
        frames = to_uint8(decode(model.network.vae, latents, official=True))[-1, :, ::4, ::4]
        off = (frames.int() - golden["g.last_frames_u8"][chunk].int()).abs()
        assert off.max() <= 1
        assert (off > 0).float().mean() <= 0.01


def test_published_eight_bit_file_fits_without_its_text(golden: Golden) -> None:
    cfg = tiny_config(golden.readme).ctrl_world
    cfg.tokenizer = ""
    network = CtrlWorldNetwork(cfg)
    state = published_names()
    load_state(network, state)
    assert torch.equal(network.unet.conv_in.weight, state["unet.conv_in.weight"])
    assert not any(name.startswith("text_encoder.") for name in network.state_dict())
