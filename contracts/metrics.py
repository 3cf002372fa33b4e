"""Every metric of a running loop: its name, meaning and tags. See docs/observability.md.

Names follow Prometheus: units are spelt out, counters end in ``_total``. Ray puts ``ray_`` before.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

Kind = Literal["counter", "gauge", "histogram"]
SECONDS = (0.003, 0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 3.0, 5.0, 10.0, 30.0)
SHARES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)
SIZES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric. Every value that is reported names all of ``tags``, and no other.

    A counter only grows. A gauge stays as it was set until its process ends. A histogram counts
    values up to each of ``boundaries``.
    """

    name: str
    kind: Kind
    help: str
    tags: tuple[str, ...] = ()
    boundaries: tuple[float, ...] = ()

    def checked(self, kind: Kind, tags: Mapping[str, object]) -> dict[str, str]:
        """The tags as text, in the declared order.

        Raises:
            ValueError: another kind of metric, or other tags than the declared ones.
        """
        if kind != self.kind:
            raise ValueError(f"metric {self.name} is a {self.kind}, not a {kind}")
        if tags.keys() != set(self.tags):
            raise ValueError(
                f"metric {self.name} has the tags {sorted(self.tags)}, got {sorted(tags)}"
            )
        return {tag: str(tags[tag]) for tag in self.tags}


@runtime_checkable
class Meter(Protocol):
    """Where processes report. Cheap to call; may be called from any thread.

    Raises:
        ValueError: the metric is of another kind, or has other tags.
    """

    def count(self, metric: Metric, amount: float | int = 1, **tags: object) -> None:
        """Add to a counter. An amount of 0 or less adds nothing."""

    def set(self, metric: Metric, value: float | int, **tags: object) -> None:
        """Set a gauge; it keeps the value until it is set again or the process ends."""

    def observe(self, metric: Metric, value: float | int, **tags: object) -> None:
        """Add one value to a histogram."""


class NoMeter:
    """Reports to nobody, and refuses what a real meter would refuse."""

    def count(self, metric: Metric, amount: float | int = 1, **tags: object) -> None:
        metric.checked("counter", tags)

    def set(self, metric: Metric, value: float | int, **tags: object) -> None:
        metric.checked("gauge", tags)

    def observe(self, metric: Metric, value: float | int, **tags: object) -> None:
        metric.checked("histogram", tags)


# Imagination. A worker is named <task>-<index>; its restarted process keeps the name.
TRAJECTORIES = Metric(
    "vlaw_trajectories_total",
    "counter",
    "Imagined trajectories that ended: stored, repeated (was stored already) or failed.",
    ("task", "worker", "outcome"),
)
NET_FRAMES = Metric(
    "vlaw_net_frames_total",
    "counter",
    "New imagined time steps of all three views; known frames do not count.",
    ("task",),
)
WM_STEPS = Metric(
    "vlaw_wm_steps_total",
    "counter",
    "World-model calls; one call advances the slots of a group together.",
    ("task",),
)
WM_STEP_SECONDS = Metric(
    "vlaw_wm_step_seconds", "histogram", "Seconds of one world-model call.", (), SECONDS
)
POLICY_INFER_SECONDS = Metric(
    "vlaw_policy_infer_seconds", "histogram", "Seconds of one batched policy call.", (), SECONDS
)
QUEUE_DEPTH = Metric(
    "vlaw_queue_depth", "gauge", "Imagination work that nobody has taken yet.", ("task",)
)
LEASED = Metric("vlaw_leased", "gauge", "Imagination work that a worker holds.", ("task",))
WORKERS = Metric(
    "vlaw_workers",
    "gauge",
    "Imagination workers by state: wanted, starting, working, idle, lost.",
    ("task", "state"),
)
WORKER_RESTARTS = Metric(
    "vlaw_worker_restarts_total",
    "counter",
    "Imagination workers that died or hung and were replaced.",
    ("task",),
)
HEARTBEAT_AGE = Metric(
    "vlaw_heartbeat_age_seconds",
    "gauge",
    "Seconds since a worker was last heard of, as its supervisor sees it.",
    ("task", "worker"),
)

# Scoring.
VERDICTS = Metric(
    "vlaw_verdicts_total",
    "counter",
    "Verdicts on imagined trajectories: accepted, rejected or error.",
    ("task", "outcome"),
)
REWARD_P_YES = Metric(
    "vlaw_reward_p_yes", "histogram", "P('yes') of imagined trajectories.", ("task",), SHARES
)
REWARD_BATCH_SIZE = Metric(
    "vlaw_reward_batch_size", "histogram", "Clips in one batch of the scorer.", (), SIZES
)

# Robots. ``store`` says what for: real, demos or evaluation.
EPISODES = Metric(
    "vlaw_episodes_total",
    "counter",
    "Episodes stored: success, failure, aborted or unlabelled.",
    ("store", "task", "outcome"),
)

# Learners: policy, world_model, reward.
LEARNER_STEP = Metric("vlaw_learner_step", "gauge", "Newest training step.", ("learner",))
LEARNER_LOSS = Metric(
    "vlaw_learner_loss", "gauge", "Loss of the newest training step.", ("learner",)
)

# The run.
STAGE = Metric("vlaw_stage", "gauge", "1 while a stage runs, 0 after it.", ("stage",))
STAGE_DONE = Metric("vlaw_stage_done", "gauge", "Units of the stage that are done.", ("stage",))
STAGE_UNITS = Metric("vlaw_stage_units", "gauge", "Units of the stage in all.", ("stage",))
GPU_SECONDS = Metric(
    "vlaw_gpu_seconds_total", "counter", "GPUs held by a stage, times seconds.", ("stage",)
)
VERSION = Metric(
    "vlaw_version",
    "gauge",
    "Newest published version of a model: policy, world_model, reward.",
    ("model",),
)
STORE_BYTES = Metric("vlaw_store_bytes", "gauge", "Bytes of a store on disk.", ("store",))
STORE_TRAJECTORIES = Metric(
    "vlaw_store_trajectories", "gauge", "Trajectories committed to a store.", ("store",)
)
RETRIES = Metric(
    "vlaw_retries_total",
    "counter",
    "Pieces of work that began again because the process that did them, or its node, was lost.",
    ("stage",),
)

CATALOGUE = (
    TRAJECTORIES,
    NET_FRAMES,
    WM_STEPS,
    WM_STEP_SECONDS,
    POLICY_INFER_SECONDS,
    QUEUE_DEPTH,
    LEASED,
    WORKERS,
    WORKER_RESTARTS,
    HEARTBEAT_AGE,
    VERDICTS,
    REWARD_P_YES,
    REWARD_BATCH_SIZE,
    EPISODES,
    LEARNER_STEP,
    LEARNER_LOSS,
    STAGE,
    STAGE_DONE,
    STAGE_UNITS,
    GPU_SECONDS,
    VERSION,
    STORE_BYTES,
    STORE_TRAJECTORIES,
    RETRIES,
)
