"""Sizes of the published models: exact counts, bytes by hand, refusals that name what to change."""

import json
import math
import os
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from configs import schema
from configs.run import ClusterConfig, RunConfig, TaskOverrides
from configs.training import TrainConfig
from services.model_sizes import ModelSize, Stream, model_sizes
from services.sizes import GIB, check_plan, inference_bytes, packed, problems, training_memory

ROOT = Path(__file__).parents[2]
REFERENCE = Path(os.environ["PARITY_DIR"]) / "../reference"


@cache
def full(*overrides: str) -> RunConfig:
    schema.register()
    with initialize_config_dir(str(ROOT / "configs"), version_base=None):
        return schema.to_run(compose("run", ["scale=full", "job=sizes", *overrides]))


@cache
def sizes(*overrides: str) -> dict[str, ModelSize]:
    return {size.flag: size for size in model_sizes(full(*overrides))}


def counted(name: str, prefix: str = "") -> int:
    """Parameters that a published list of names and shapes holds under ``prefix``."""
    listed = json.loads((REFERENCE / name).read_text())
    rows = {k: v[0] if v and isinstance(v[0], list) else v for k, v in listed.items()}
    return sum(math.prod(shape) for key, shape in rows.items() if key.startswith(prefix))


@pytest.mark.parity
def test_ctrl_world_has_the_published_parameters():
    parts = sizes()["world_model"].parts
    name = "ctrl_world_state_dict_shapes.json"
    assert parts == {part: counted(name, f"{part}.") for part in parts}
    left_out = counted(name, "image_encoder.")  # never runs, never loaded
    assert sizes()["world_model"].parameters == counted(name) - left_out


@pytest.mark.parity
def test_pi05_has_the_published_parameters():
    """The list has the tied embedding twice and the expert's head, which is never used."""
    name, pali = "pi05_pytorch_state_dict_keys.json", "paligemma_with_expert.paligemma."
    expert = "paligemma_with_expert.gemma_expert."
    parts = sizes()["policy"].parts
    assert parts["vision"] == counted(name, f"{pali}model.vision_tower.")
    assert parts["projector"] == counted(name, f"{pali}model.multi_modal_projector.")
    assert parts["language model"] == counted(name, f"{pali}model.language_model.")
    assert parts["action expert"] == counted(name, f"{expert}model.")
    twice = counted(name, f"{pali}lm_head") + counted(name, f"{expert}lm_head")
    assert sizes()["policy"].parameters == counted(name) - twice


def test_qwen_has_the_sizes_of_its_name():
    """4.438 B with a vision tower of 415 M, as reward_and_metrics.md counts them."""
    size = sizes()["reward"]
    assert round(size.parameters / 1e9, 3) == 4.438
    assert round(size.parts["vision"] / 1e6) == 415
    assert size.trained == size.parts["language model"]  # scale=full freezes the vision tower


SMALL = ModelSize("m", "policy", {"a": 1000}, (Stream(3, 10, 4),), False, (), 600, 100)
PLAIN = TrainConfig(batch=8, bf16=True)


def test_one_gpu_holds_masters_gradients_moments_casts_and_activations():
    memory = training_memory(SMALL, PLAIN, 1)
    assert (memory.weights, memory.gradients, memory.moments) == (4000, 2400, 4800)
    assert (memory.average, memory.copies) == (0, 2000)
    assert memory.activations == 8 * (34 * 3 * 40 + 34 * 40)
    assert training_memory(SMALL, replace(PLAIN, ema=0.99), 1).average == 2400
    assert training_memory(SMALL, replace(PLAIN, bf16=False), 1).activations == 2 * 8 * 5440
    again = training_memory(replace(SMALL, recompute=True), PLAIN, 1)
    assert again.activations == 8 * (2 * 3 * 40 + 34 * 40)


def test_four_gpus_share_only_where_sharded():
    ddp = training_memory(SMALL, PLAIN, 4)
    assert (ddp.weights, ddp.moments, ddp.copies) == (4000, 4800, 2000 + 2400)
    fsdp = training_memory(SMALL, replace(PLAIN, sharding="fsdp"), 4)
    assert (fsdp.weights, fsdp.gradients, fsdp.moments, fsdp.copies) == (1000, 600, 1200, 600)
    assert ddp.activations == fsdp.activations == 2 * 5440  # two samples each


def test_inference_holds_weights_casts_and_one_layer():
    assert inference_bytes(SMALL, 3, low=False) == 4000 + 2 * 34 * 40 * 3
    assert inference_bytes(SMALL, 3, low=True) == 6000 + 34 * 40 * 3


def test_the_papers_plan_fits_eight_80_gb_gpus():
    assert problems(full(), list(sizes().values())) == []


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("policy.train.sharding=ddp", "Change policy.train.sharding=fsdp"),
        ("cluster.learner_workers=1", "Change cluster.learner_workers=2, policy.pi05.lora_rank=16"),
        ("cluster.worker_gpus=0.25", "Raise cluster.worker_gpus"),
        ("cluster.gpu_memory_gb=12", "imagination worker needs about"),
    ],
)
def test_a_plan_that_cannot_fit_is_refused(override: str, named: str):
    found = problems(full(override), list(sizes().values()))
    assert named in "; ".join(found)
    assert all("cluster.gpu_memory_gb=" in line for line in found)


def test_the_start_of_a_run_refuses_it_too():
    with pytest.raises(ValueError, match=r"policy learner .* of 2 GPUs .*learner_workers=4,"):
        check_plan(full("cluster.learner_workers=2", "cluster.gpu_memory_gb=40"))


def test_lora_trains_rank_times_the_widths_of_its_targets():
    """Rank 4 beside q_proj alone: 4 (in + out) in 18 layers of the expert and 17 of the language
    model, whose last queries are never read."""
    lora = ("policy.pi05.lora_rank=4", "policy.pi05.lora_targets=[q_proj]")
    grown = sizes(*lora)["policy"].parameters - sizes()["policy"].parameters
    assert grown == 17 * 4 * (2048 + 2048) + 18 * 4 * (1024 + 2048)
    memory = training_memory(sizes(*lora)["policy"], full().policy.train, 1)
    assert memory.moments + memory.gradients < 0.1 * GIB


def test_a_cpu_plan_is_not_looked_at_and_a_wrong_folder_is_refused(tmp_path):
    check_plan(RunConfig(task={"draw": full().task["draw"]}))
    with pytest.raises(ValueError, match=r"holds no config\.json"):
        sizes(f"reward.qwen.path={tmp_path}")


def test_workers_are_packed_by_what_a_gpu_holds():
    """One worker's bytes from the two models' own sizes; the largest k with k x need <= 95 %."""
    config = full("cluster.pack_gpus=true")
    slots = config.imagination.slots
    need = inference_bytes(sizes()["policy"], slots, True)
    need += inference_bytes(
        sizes()["world_model"], 2 * config.world_model.ctrl_world.batch_slots, True
    )
    assert packed(full()) is full()
    for memory in (80, 141):
        config = full("cluster.pack_gpus=true", f"cluster.gpu_memory_gb={memory}")
        count = round(1 / packed(config).cluster.worker_gpus)
        assert count * need <= 0.95 * memory * GIB < (count + 1) * need
        check_plan(packed(config))
    with pytest.raises(ValueError, match=r"give cluster\.worker_gpus"):
        packed(RunConfig(task={"book": TaskOverrides()}, cluster=ClusterConfig(pack_gpus=True)))
