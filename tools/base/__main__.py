"""Makes the base models of the embedded scale on one machine with a GPU: ``make base``.

    python tools/base [all | play | policy | world_model | reward | measure | keep]
        [guided=1370] [hydra overrides of scale=pretrain]

Plays scripted episodes on all cores, trains the three models, measures them and
puts them into models/embedded/base (docs/embedded-models.md). Needs neither Ray nor a replay store:
this many frames fit decoded into one file, and every learner draws from it.
"""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from measure import measure
from networks import MAKE
from scripted import Scripted, record, requests

from configs import schema
from configs.run import RunConfig
from services.stages import write_json

BASE = ROOT / "models" / "embedded" / "base"
GUIDED = "guided="  # argument: guided episodes per task
FIRST_LOSSES = 3  # kept beside the weights


def configured(overrides: Sequence[str]) -> RunConfig:
    schema.register()
    with initialize_config_dir(str(ROOT / "configs"), version_base=None):
        return schema.to_run(compose("run", ["scale=pretrain", "task=all", *overrides]))


def play(config: RunConfig, out: Path, guided: int) -> None:
    """New episodes: what was trained on others in ``out`` is deleted."""
    for stale in ("state", "wide", *MAKE):
        shutil.rmtree(out / stale, ignore_errors=True)
    played = record(list(requests(config, guided)), out / "play")
    for kind in ("demo", "guided", "play"):
        good = {
            task: f"{len(played.successes(kind, task))}/{len(played.ids(kind, task))}"
            for task in config.task
        }
        print(kind, good, flush=True)


def make(kind: str, config: RunConfig, out: Path) -> None:
    start = time.monotonic()
    result = MAKE[kind](config, Scripted(out / "play"), out)
    part = {"policy": config.policy, "world_model": config.world_model, "reward": config.reward}
    story = {
        "command": "make base",
        "seed": config.seed,
        "steps": part[kind].train.steps,
        "batch": part[kind].train.batch,
        "data": result["data"],
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "seconds": round(time.monotonic() - start),
        "first_losses": list(result["losses"][:FIRST_LOSSES]),
        "last_loss": float(np.mean(result["losses"][-200:])),
    }
    write_json(out / kind / "pretraining.json", story)


def keep(out: Path) -> None:
    """Put the finished folders where the code looks for bases.

    Raises:
        ValueError: one is missing; then nothing is touched.
    """
    missing = [kind for kind in MAKE if not (out / kind / "pretraining.json").exists()]
    if missing:
        raise ValueError(f"{out} has no finished {', '.join(missing)}: make it first")
    for kind in MAKE:
        shutil.rmtree(BASE / kind, ignore_errors=True)
        shutil.copytree(out / kind, BASE / kind)


def everything(config: RunConfig, out: Path, guided: int, overrides: Sequence[str]) -> None:
    play(config, out, guided)
    command = [sys.executable, str(Path(__file__).parent)]
    for together in (("world_model", "reward"), ("policy",)):  # which learns from dreams as well
        runs = [subprocess.Popen([*command, kind, *overrides]) for kind in together]
        if any([run.wait() for run in runs]):
            raise SystemExit("a training failed: see above")
    judge(config, out)
    keep(out)


def judge(config: RunConfig, out: Path) -> None:
    found = measure(config, Scripted(out / "play"), out)
    print(json.dumps(found, indent=1), flush=True)
    write_json(out / "measured.json", found)


def main(arguments: Sequence[str]) -> None:
    torch.set_float32_matmul_precision("high")
    what, *rest = arguments or ["all"]
    guided = [int(one.removeprefix(GUIDED)) for one in rest if one.startswith(GUIDED)]
    overrides = [one for one in rest if not one.startswith(GUIDED)]
    config = configured(overrides)
    out = Path(config.out)
    match what:
        case "all":
            everything(config, out, *(guided or [1370]), overrides)
        case "play":
            play(config, out, *(guided or [1370]))
        case "measure":
            judge(config, out)
        case "keep":
            keep(out)
        case kind if kind in MAKE:
            make(kind, config, out)
        case _:
            raise SystemExit(f"{what!r}: choose all, play, {', '.join(MAKE)}, measure or keep")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (ValueError, OSError, HydraException) as error:
        sys.exit(f"error: {error}")
