"""Entry point: ``python ray_job.py [key=value ...]``, or the same through ``ray job submit``."""

import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig

from cluster import interrupts, submitted
from configs import schema
from contracts.errors import ArmStoppedError, StoppedError

schema.register()


@hydra.main(version_base=None, config_path="configs", config_name="run")
def main(config: DictConfig) -> None:
    """Check the config, then do the job it names. Bad input is one line and exit status 1."""
    try:
        run = schema.to_run(config)
        submitted.check_paths(run)
        # Imported late: whoever gave a bad value does not wait for torch and Ray.
        from cluster.jobs import run_job  # noqa: PLC0415

        run_job(run, Path.cwd())
    except (ValueError, OSError, StoppedError, ArmStoppedError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    with interrupts.one_line():
        main()
