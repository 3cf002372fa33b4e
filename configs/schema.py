"""Registers the typed schema with hydra and turns what it composed into a RunConfig."""

from typing import cast

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from configs.run import RunConfig


def register() -> None:
    ConfigStore.instance().store(name="run_schema", node=RunConfig)


def to_run(config: DictConfig) -> RunConfig:
    """Check a composed config and return it as plain dataclasses.

    Raises:
        ValueError: one message that names the flag to change.
    """
    try:
        return cast(RunConfig, OmegaConf.to_object(config))
    except OmegaConfBaseException as error:
        cause = error.__cause__
        raise cause if isinstance(cause, ValueError) else ValueError(str(error)) from error
