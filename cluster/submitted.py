"""What is different for a driver that ``ray job submit`` started."""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from configs.run import RunConfig

JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # Ray gives a submitted driver a variable of this name
WRITES_NOTHING = ("serve", "sizes")
NO_PATH = ("", "base", "scratch", "none")
INPUTS = ("path", "checkpoint", "tokenizer", "_file", "_weights", "_videos", "published")
ADVICE = "Give an absolute path on storage that every node mounts"


def runtime_env() -> dict[str, Any] | None:
    """What the job was submitted with; None where nobody submitted a job."""
    given = os.environ.get(JOB_CONFIG)
    return None if given is None else json.loads(given).get("runtime_env") or {}


def check_paths(config: RunConfig) -> None:
    """Refuse relative paths that would be lost, or are missing, in Ray's copy of the repository.

    Raises:
        ValueError: it names the flag. Outside a submitted job nothing is refused.
    """
    if runtime_env() is None:
        return
    outputs = {"out": config.out, "export.to": config.export.to if config.job == "export" else ""}
    if config.dry_run or config.job in WRITES_NOTHING:
        outputs = {}
    for flag, value in outputs.items():
        if value and not Path(value).is_absolute():
            raise ValueError(
                f"{flag}={value}: a submitted job runs in a copy of the repository, which Ray "
                f"deletes. {ADVICE}, such as {flag}=/shared/vlaw/run"
            )
    for flag, value in _inputs("", asdict(config)):
        if value not in NO_PATH and not Path(value).is_absolute() and not Path(value).exists():
            raise ValueError(
                f"{flag}={value}: a submitted job looks for it in the copy of the repository that "
                f"Ray made, and it is not there. {ADVICE}"
            )


def _inputs(prefix: str, settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(flag, value) of every setting that names a file or folder to read."""
    for key, value in settings.items():
        flag = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _inputs(f"{flag}.", value)
        elif isinstance(value, str) and (
            key.endswith(INPUTS)
            or flag in ("replay_eval.run", "reward.audited")
            or prefix == "replay_eval.models."
        ):
            yield flag, value
