"""``job=serve``: one process that answers openpi's clients with a policy; Ray is not started."""

import asyncio
import signal
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from cluster.checkpoints import MANIFEST, base_folder, verified
from configs.remote import ANYBODY, ServeConfig
from configs.run import RunConfig
from contracts.constants import NUM_JOINTS, VIEWS
from contracts.types import Observation, RobotState
from models.build import load_policy
from models.interfaces import TrainablePolicy
from services.policy_requests import RequestFormat, request_format
from services.policy_server import OpenpiServer, ServerSettings, serve_until


def serve(config: RunConfig) -> None:
    """Load the policy, try it once, then serve until SIGINT or SIGTERM.

    Raises:
        ValueError: the policy, the key file or the address cannot be used.
    """
    console, settings = Console(), config.serve
    folder = base_folder("policy", config.policy.checkpoint)
    if folder is None:
        raise ValueError("job=serve needs policy.checkpoint=<folder>")
    wanted = request_format(config)
    if config.dry_run:
        where = f"ws://{settings.host}:{settings.port}"
        console.print(f"would serve {folder} at {where}: {', '.join(wanted.keys)}", highlight=False)
        return
    key = _key(settings)
    facts = _facts(config, folder)
    policy = load_policy(config.policy, folder, facts["policy_version"])
    policy.module().to(_device(settings.device)).eval()
    facts["action_horizon"] = _try(policy, wanted)
    server = OpenpiServer(
        policy, wanted, facts, ServerSettings(key, settings.max_batch, settings.seed)
    )

    def ready(port: int) -> None:
        console.print(f"serving {folder} at ws://{settings.host}:{port}", highlight=False)

    asyncio.run(_until_told(server, settings, ready))


async def _until_told(server: OpenpiServer, settings: ServeConfig, ready: Any) -> None:
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    await serve_until(server, (settings.host, settings.port), stopped, ready)


def _key(settings: ServeConfig) -> str:
    if settings.key_file in ("", ANYBODY):
        return ""
    try:
        key = Path(settings.key_file).read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ValueError(f"serve.key_file={settings.key_file}: {error.strerror}") from error
    if not key:
        raise ValueError(f"serve.key_file={settings.key_file} is empty: put a secret into it")
    return key


def _facts(config: RunConfig, folder: Path) -> dict[str, Any]:
    """What tells one policy from another in the metadata; a published folder is verified first."""
    published = verified(folder) if (folder / MANIFEST).exists() else None
    return {
        "model": config.policy.kind,
        "checkpoint": str(folder.resolve()),
        "policy_version": published.version if published else 0,
        "checksum": published.checksum if published else "",
    }


def _device(setting: str) -> torch.device:
    if setting == "cuda" and not torch.cuda.is_available():
        raise ValueError("serve.device=cuda: there is no CUDA device here; use serve.device=cpu")
    if setting == "auto":
        setting = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(setting)


def _try(policy: TrainablePolicy, wanted: RequestFormat) -> int:
    """Plan once on black views, so that compiling and mistakes come before any client; returns
    how many ticks it plans."""
    zeros = np.zeros(NUM_JOINTS, np.float32)
    images = np.zeros((len(VIEWS), wanted.height, wanted.width, 3), np.uint8)
    state = RobotState(zeros, zeros, zeros[:6], 0.0, 0.0)
    return len(policy.act([Observation(images, state, "do nothing")], [0])[0].actions)
