"""Which method improves the policy, and how."""

from dataclasses import dataclass, field

from configs.checks import at_least, inside, one_of, share

METHODS = ("vlaw", "filtered_bc", "dsrl")
JUDGES = ("reward", "physics")


@dataclass
class SteeringConfig:
    """``method=dsrl``: SAC over the noise of a policy that stays as it is (arXiv 2506.15799)."""

    steps: int = 3000  # gradient steps per iteration, on all decisions of D_real
    batch: int = 256
    learning_rate: float = 3e-4
    width: int = 256  # of two hidden layers, actor and critics
    bound: float = 1.5  # of the noise's mean; a policy that nobody steers has a standard normal
    discount: float = 0.99  # per decision

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "width"):
            at_least(f"method.steering.{name}", getattr(self, name), 1)
        inside("method.steering.learning_rate", self.learning_rate, 0, 1)
        inside("method.steering.bound", self.bound, 0, 10)
        share("method.steering.discount", self.discount)


@dataclass
class MethodConfig:
    kind: str = "vlaw"
    iterations: int = 2
    update_policy: bool = True  # false: only collect, imagine and train what judges the policy
    real_share: float = 0.5  # of a policy batch drawn from real successes, the rest from imagined
    judge: str = "reward"  # of D_syn+; physics: what only a simulator knows, to find what limits
    advantage_beta: float = 0.0  # > 0: weights exp(A / beta) (Eq. 7), A against the same start
    steering: SteeringConfig = field(default_factory=SteeringConfig)

    def __post_init__(self) -> None:
        one_of("method.kind", self.kind, METHODS)
        at_least("method.iterations", self.iterations, 1)
        at_least("method.advantage_beta", self.advantage_beta, 0)
        one_of("method.judge", self.judge, JUDGES)
        share("method.real_share", self.real_share)
