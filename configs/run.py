"""The whole run: Algorithm 1's numbers, the tasks, and the parts above."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from configs.audit import AuditConfig
from configs.checks import at_least, has_base, inside, one_of, share, worker_count
from configs.estimate import EstimateConfig
from configs.export import ExportConfig
from configs.method import MethodConfig
from configs.policy import PolicyConfig, check_noise
from configs.remote import ServeConfig
from configs.replay_eval import ReplayEvalConfig
from configs.reward import RewardConfig
from configs.robot import TASKS, RobotConfig
from configs.study import StudyConfig, check_study
from configs.world_model import WorldModelConfig

JOBS = (
    "loop",
    "replay_eval",
    "report",
    "calibrate",
    "evaluate",
    "serve",
    "latents",
    "export_world_model",
    "export",
    "statistics",
    "sizes",
    "audit",
    "study",
)
WORLD_MODEL_JOBS = ("latents", "export_world_model")  # need neither a policy nor a reward model
DATA_JOBS = ("export", "statistics", "sizes", "audit")  # need no weights at all
SINKS = ("tensorboard", "wandb")
TRUTHS = ("none", "accepted", "all")
POLICY_JOBS = ("evaluate", "serve")  # need neither a world model nor a reward model


@dataclass
class TaskConfig:
    """The numbers of one task. The paper: K = 50 real rollouts, N = 500 imagined, alpha = 0.8."""

    rollouts: int = 50  # K: real episodes per iteration
    imagine: int = 500  # N: imagined trajectories per iteration
    workers: int | str = 1  # imagination workers of this task; auto: as the cluster has room
    alpha: float = 0.8  # accept if P('yes') > alpha (Eq. 3)
    accept: int = 0  # stop imagining when so many are accepted; 0: imagine all N
    min_success: int = 1  # smallest D_syn+ that may update the policy
    min_agreement: float = 0.0  # smallest AUC of imagined shares against real outcomes, by start
    max_ticks: int = 0  # longest real episode in 15 Hz ticks; 0: the task's own default

    def __post_init__(self) -> None:
        at_least("each_task.rollouts", self.rollouts, 1)
        at_least("each_task.imagine", self.imagine, 1)
        worker_count("each_task.workers", self.workers)
        at_least("each_task.accept", self.accept, 0)
        at_least("each_task.min_success", self.min_success, 1)
        at_least("each_task.max_ticks", self.max_ticks, 0)
        inside("each_task.alpha", self.alpha, 0, 1)
        share("each_task.min_agreement", self.min_agreement)
        if self.accept > self.imagine:
            raise ValueError(
                f"each_task.accept={self.accept} is more than the each_task.imagine="
                f"{self.imagine} that are imagined at most"
            )
        if 0 < self.accept < self.min_success:
            raise ValueError(
                f"each_task.accept={self.accept} would always end below each_task.min_success="
                f"{self.min_success}, and the task would never update the policy"
            )

    @property
    def fewest_workers(self) -> int:
        """Workers that the task needs a place for."""
        return self.workers if isinstance(self.workers, int) else 1


@dataclass
class TaskOverrides:
    """What one task does differently, as in ``task.draw.workers=4``; null: as ``each_task``."""

    rollouts: int | None = None
    imagine: int | None = None
    workers: Any = None  # a number or auto; OmegaConf cannot merge an optional union in a dict
    alpha: float | None = None
    accept: int | None = None
    min_success: int | None = None
    min_agreement: float | None = None
    max_ticks: int | None = None


@dataclass
class ImaginationConfig:
    slots: int = 16  # trajectories that one worker has under way
    groups: int = 2  # they take turns: one in the world model, the others with policy and host
    max_chunks: int = 20  # longest imagined trajectory (paper: 20)
    end_at_success: bool = False  # as soon as P('yes') > alpha (paper: all have max_chunks)
    later_starts: float = 0.0  # share that begins in the middle of a real episode (paper: none)
    lease_s: float = 300.0  # a worker silent for this long is replaced, its work goes to another

    def __post_init__(self) -> None:
        at_least("imagination.slots", self.slots, 1)
        at_least("imagination.groups", self.groups, 1)
        at_least("imagination.max_chunks", self.max_chunks, 1)
        share("imagination.later_starts", self.later_starts)
        at_least("imagination.lease_s", self.lease_s, 1)


@dataclass
class DemoConfig:
    """Demonstrations: the warm start, the control's data and the co-training set D_DROID."""

    per_task: int = 10  # scripted in simulation
    noise: float = 0.0  # AR(0.8) noise on the scripted expert's action
    path: str = ""  # instead: recorded episodes in Ctrl-World's or LeRobot's layout
    limit: int = 0  # of them at most so many, chosen by hash; 0: all

    def __post_init__(self) -> None:
        at_least("demos.per_task", self.per_task, 1)
        at_least("demos.noise", self.noise, 0)
        at_least("demos.limit", self.limit, 0)


@dataclass
class EvaluationConfig:
    episodes: int = 20  # fixed starts per task, never used for training
    seed: int = 1_000_000
    control: bool = True  # also evaluate the same-steps control: fine-tuned on demonstrations only
    truth: str = "accepted"  # whose imagined actions robot=mujoco executes: accepted, all, none
    noise: float = 1.0  # of the policy while it is evaluated; policy.noise is of its practice

    def __post_init__(self) -> None:
        at_least("evaluation.episodes", self.episodes, 0)
        one_of("evaluation.truth", self.truth, TRUTHS)


@dataclass
class ClusterConfig:
    """Where processes go. ``address=""`` starts a local Ray and stops it at the end."""

    address: str = ""
    num_cpus: int = 0  # of the local Ray; 0: as many as it needs to place every process
    object_store_mb: int = 512
    worker_cpus: float = 0.5  # of one imagination worker, one robot
    worker_gpus: float = 0.0
    pack_gpus: bool = False  # as many workers on a GPU as its memory holds, by job=sizes
    scorer_cpus: float = 0.5
    scorer_gpus: float = 0.0
    learner_workers: int = 1
    learner_cpus: float = 1.0
    learner_gpus: float = 0.0
    gpu_memory_gb: float = 80.0  # GiB of one GPU; job=sizes and every start check the plan by it
    start_timeout_s: float = 180.0  # how long a process may take to find its resources
    stall_timeout_s: float = 600.0  # how long a stage may go without any progress
    max_failures: int = 3
    dashboard: bool = True  # of the local Ray

    def __post_init__(self) -> None:
        for name in ("worker_cpus", "worker_gpus", "scorer_cpus", "scorer_gpus"):
            at_least(f"cluster.{name}", getattr(self, name), 0)
        at_least("cluster.learner_workers", self.learner_workers, 1)
        at_least("cluster.gpu_memory_gb", self.gpu_memory_gb, 1)
        at_least("cluster.object_store_mb", self.object_store_mb, 80)


@dataclass
class RunConfig:
    """Everything a run depends on. Equal configs and seeds give equal runs on a CPU."""

    job: str = "loop"
    out: str = "outputs/run"  # the same folder continues the run
    seed: int = 0
    dry_run: bool = False  # print the plan and stop
    each_task: TaskConfig = field(default_factory=TaskConfig)
    task: dict[str, TaskOverrides] = field(default_factory=dict)
    robot: RobotConfig = field(default_factory=RobotConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    world_model: WorldModelConfig = field(default_factory=WorldModelConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    method: MethodConfig = field(default_factory=MethodConfig)
    imagination: ImaginationConfig = field(default_factory=ImaginationConfig)
    demos: DemoConfig = field(default_factory=DemoConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    serve: ServeConfig = field(default_factory=ServeConfig)
    replay_eval: ReplayEvalConfig = field(default_factory=ReplayEvalConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
    estimate: EstimateConfig = field(default_factory=EstimateConfig)
    audit: AuditConfig = field(default_factory=AuditConfig)
    study: StudyConfig = field(default_factory=StudyConfig)
    sinks: list[str] = field(default_factory=list)  # tensorboard, wandb: the numbers go there, too

    def __post_init__(self) -> None:
        one_of("job", self.job, JOBS)
        for sink in self.sinks:
            one_of("sinks", sink, SINKS)
        self._check_bases()
        if not self.out:
            raise ValueError("out='' names no folder: give out=<folder>")
        for name in self.task:
            self.for_task(name)
        if self.robot.kind == "recorded":
            self._check_recorded()
        else:
            self._check_tasks()
        self._check_local_cluster()
        check_noise("evaluation.noise", self.evaluation.noise, self.policy.kind)
        if self.job == "study":
            check_study(self)
        if self.method.kind == "dsrl" and self.policy.kind != "embedded":
            raise ValueError(
                f"method=dsrl steers the noise of policy=embedded, not of policy={self.policy.kind}"
            )
        simulated = self.robot.kind == "mujoco" and self.evaluation.truth == "all"
        if self.method.judge == "physics" and not simulated:
            raise ValueError(
                "method.judge=physics is the simulator's answer about every imagined trajectory: "
                "it needs robot=mujoco and evaluation.truth=all"
            )

    def _check_bases(self) -> None:
        if self.job in DATA_JOBS:
            return
        if self.job == "replay_eval":
            self._check_replayed()
            return
        if self.job not in WORLD_MODEL_JOBS:
            self._check_policy()
        if self.job not in POLICY_JOBS:
            has_base("world_model", self.world_model.kind, self.world_model.checkpoint)
        if self.job not in (*WORLD_MODEL_JOBS, *POLICY_JOBS):
            has_base("reward", self.reward.kind, self.reward.checkpoint)

    def _check_replayed(self) -> None:
        """World models are needed; a policy (futures) and a reward model (success) are not."""
        for name, folder in self.replay_eval.named(self.world_model.checkpoint).items():
            flag = f"replay_eval.models.{name}" if self.replay_eval.models else "world_model"
            has_base(flag, self.world_model.kind, folder)
        for flag, part in (("policy", self.policy), ("reward", self.reward)):
            if part.checkpoint == "base":
                has_base(flag, part.kind, part.checkpoint)
        if self.robot.kind != "recorded" and not self.replay_eval.run:
            raise ValueError(
                "job=replay_eval needs real episodes: give robot=recorded robot.path=<folder>, or "
                "replay_eval.run=<folder of a run> for its evaluation episodes"
            )

    def _check_policy(self) -> None:
        """A policy behind a server can act and imagine, but nothing here reaches its weights."""
        if self.policy.kind != "remote":
            has_base("policy", self.policy.kind, self.policy.checkpoint)
            if self.job in POLICY_JOBS and self.policy.checkpoint == "scratch":
                raise ValueError(
                    f"job={self.job} policy.checkpoint=scratch would use random weights: give "
                    "policy.checkpoint=<folder>"
                )
        elif self.job == "serve":
            raise ValueError(
                f"job={self.job} needs the policy's weights, and those of policy=remote are where "
                "its server is: choose policy=embedded or policy=pi05"
            )
        elif self.job == "loop" and self.method.update_policy:
            raise ValueError(
                "policy=remote cannot be trained, its weights are where its server is. Give "
                "method.update_policy=false to collect, imagine and train the other models with "
                "it, or job=evaluate to evaluate it"
            )

    def _check_tasks(self) -> None:
        if not self.task:
            raise ValueError(
                "zero tasks: choose some with task=all, task=quick or task=[book,draw]"
            )
        if self.robot.kind == "droid":  # a lab's own tasks: the host knows their prompts
            self._check_demos()
            return
        for name in self.task:
            one_of("task", name, TASKS)

    def _check_demos(self) -> None:
        if self.job == "loop" and not self.demos.path:
            raise ValueError(
                "robot=droid: nobody demonstrates by itself there. Give demos.path=<folder of "
                "recordings of these tasks>, in Ctrl-World's or LeRobot's layout"
            )

    def _check_recorded(self) -> None:
        if self.task:
            raise ValueError(
                "robot=recorded takes its tasks from the recordings: use task=recorded"
            )
        if self.job == "loop" and self.reward.kind == "qwen" and self.robot.untitled:
            raise ValueError(
                "reward=qwen asks whether an instruction was followed and cannot judge recordings "
                "without one: give robot.untitled=false, which leaves those out"
            )

    def _check_local_cluster(self) -> None:
        """A local Ray of a given size must hold every stage; other clusters are asked at start."""
        needs = self._cpus_by_stage(self.task)
        stage = max(needs, key=lambda name: needs[name])
        if not self.cluster.address and 0 < self.cluster.num_cpus < needs[stage]:
            raise ValueError(
                f"cluster.num_cpus={self.cluster.num_cpus} is too small: the widest stage needs "
                f"{needs[stage]:g} CPUs ({stage}). Raise it, or lower one of those"
            )

    def for_task(self, name: str) -> TaskConfig:
        """The task's numbers: ``each_task`` with the task's own overrides; errors name the task."""
        own = self.task.get(name, TaskOverrides())
        given = {key: value for key, value in asdict(own).items() if value is not None}
        try:
            return replace(self.each_task, **given)
        except ValueError as error:
            raise ValueError(str(error).replace("each_task", f"task.{name}")) from error

    def max_ticks(self, name: str) -> int:
        """Longest real episode of a task, in 15 Hz ticks."""
        return self.for_task(name).max_ticks or TASKS.get(name, self.robot.max_ticks)

    def peak_cpus(self, tasks: Iterable[str] = ()) -> float:
        """Logical CPUs of the widest stage.

        ``tasks``: those of the recordings, where the config names none.
        """
        return max(self._cpus_by_stage(self.task or tasks).values())

    def _cpus_by_stage(self, tasks: Iterable[str]) -> dict[str, float]:
        """By what decides it, in words."""
        cluster = self.cluster
        one = f"cluster.worker_cpus={cluster.worker_cpus:g}"
        workers = sum(self.for_task(name).fewest_workers for name in tasks)
        learn = f"{cluster.learner_workers} x cluster.learner_cpus={cluster.learner_cpus:g}"
        return {
            f"robot.count={self.robot.count} and a policy server, each {one}": (
                (self.robot.count + 1) * cluster.worker_cpus
            ),
            f"task.<name>.workers, {workers} in all, each {one}, and a scorer": (
                workers * cluster.worker_cpus + cluster.scorer_cpus
            ),
            f"training: {learn}": cluster.learner_workers * cluster.learner_cpus,
            f"replay_eval.workers={self.replay_eval.workers}, each {one}": (
                self.replay_eval.workers * cluster.worker_cpus
            ),
        }
