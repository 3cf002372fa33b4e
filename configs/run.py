"""The whole run: Algorithm 1's numbers, the tasks, and the parts above."""

from dataclasses import dataclass, field

from configs.checks import at_least, inside, one_of
from configs.policy import PolicyConfig
from configs.reward import RewardConfig
from configs.robot import TASKS, RobotConfig
from configs.world_model import WorldModelConfig

METHODS = ("vlaw", "filtered_bc")
JOBS = ("loop", "pretrain", "report")


@dataclass
class TaskConfig:
    """One task's share of the run. The paper: 50 real rollouts, 500 imagined, alpha 0.8."""

    rollouts: int = 50  # K: real episodes per iteration
    imagine: int = 500  # N: imagined trajectories per iteration
    workers: int = 1  # imagination workers of this task
    alpha: float = 0.8  # accept if P('yes') > alpha (Eq. 3)
    min_success: int = 1  # smallest D_syn+ that may update the policy
    max_ticks: int = 0  # longest real episode; 0: the task's own default

    def __post_init__(self) -> None:
        at_least("task.<name>.rollouts", self.rollouts, 1)
        at_least("task.<name>.imagine", self.imagine, 0)
        at_least("task.<name>.workers", self.workers, 1)
        at_least("task.<name>.min_success", self.min_success, 1)
        inside("task.<name>.alpha", self.alpha, 0, 1)


@dataclass
class MethodConfig:
    kind: str = "vlaw"
    iterations: int = 2
    real_share: float = 0.5  # of a policy batch drawn from real successes, the rest from imagined
    advantage_beta: float = 0.0  # > 0: weight samples by exp(A / beta) (Eq. 7)

    def __post_init__(self) -> None:
        one_of("method.kind", self.kind, METHODS)
        at_least("method.iterations", self.iterations, 1)
        at_least("method.advantage_beta", self.advantage_beta, 0)
        inside("method.real_share", self.real_share, 0, 1)


@dataclass
class ImaginationConfig:
    slots: int = 16  # trajectories that one worker advances together
    max_chunks: int = 20  # longest imagined trajectory (paper: 20)
    start_frames: int = 1  # imagination starts from one of a real episode's first frames


@dataclass
class DemoConfig:
    """Demonstrations: the warm start, the control's data and, in simulation, D_DROID."""

    per_task: int = 10
    noise: float = 0.0  # AR(0.8) noise on the scripted expert's action


@dataclass
class EvaluationConfig:
    episodes: int = 20  # fixed starts per task, never used for training
    seed: int = 1_000_000
    control: bool = True  # also evaluate the same-steps control: fine-tuned on demonstrations only


@dataclass
class ClusterConfig:
    """Where processes go. ``address=""`` starts a local Ray and stops it at the end."""

    address: str = ""
    num_cpus: int = 0  # of the local Ray; 0: as many as it needs to place every process
    object_store_mb: int = 512
    worker_cpus: float = 0.5  # of one imagination worker, one robot
    worker_gpus: float = 0.0
    scorer_cpus: float = 0.5
    scorer_gpus: float = 0.0
    learner_workers: int = 1
    learner_cpus: float = 1.0
    learner_gpus: float = 0.0
    start_timeout_s: float = 180.0  # how long a process may take to find its resources
    stall_timeout_s: float = 600.0  # how long a stage may go without any progress
    max_failures: int = 3

    def __post_init__(self) -> None:
        for name in ("worker_cpus", "worker_gpus", "scorer_cpus", "scorer_gpus"):
            at_least(f"cluster.{name}", getattr(self, name), 0)
        at_least("cluster.learner_workers", self.learner_workers, 1)
        at_least("cluster.object_store_mb", self.object_store_mb, 80)


@dataclass
class RunConfig:
    """Everything a run depends on. Equal configs and seeds give equal runs on a CPU."""

    job: str = "loop"
    out: str = "outputs/run"  # the same folder continues the run
    seed: int = 0
    dry_run: bool = False  # print the plan and stop
    task: dict[str, TaskConfig] = field(default_factory=dict)
    robot: RobotConfig = field(default_factory=RobotConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    world_model: WorldModelConfig = field(default_factory=WorldModelConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    method: MethodConfig = field(default_factory=MethodConfig)
    imagination: ImaginationConfig = field(default_factory=ImaginationConfig)
    demos: DemoConfig = field(default_factory=DemoConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)

    def __post_init__(self) -> None:
        one_of("job", self.job, JOBS)
        if self.robot.kind == "mujoco":
            if not self.task:
                raise ValueError("zero tasks: choose some with task=all or task=quick")
            for name in self.task:
                one_of("task", name, TASKS)
