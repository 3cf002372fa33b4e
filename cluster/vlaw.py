"""Algorithm 1 of VLAW (arXiv 2602.12063), to be read beside the paper.

    for i in 1..K_iter:
      (1) collect   roll out the policy on the real robot, K per task, labelled     -> D_real grows
      (2) dream     post-train the world model on D_real and D_DROID (Eq. 1, 2)     -> version i
          judge     iteration 1: post-train the reward model on the labels
      (3) imagine   N per task in the world model from real first frames,
          score     keep those with P('yes') > alpha (Eq. 3)                        -> D_syn+
      (4) improve   post-train the policy on successes of D_real and D_syn (Eq. 4)  -> version i
    evaluate on fixed starts that training never saw; report

Failures train the world model and the reward model; only successes train the policy. Every step
below is a stage with a manifest: the same command after any stop continues at the first one missing.
"""

from dataclasses import dataclass
from typing import Any

from cluster.run_context import Context, Versions
from cluster.stages import collect, dream, evaluate, imagine, improve, judge, score, setup

Results = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Finished:
    """What Algorithm 1 leaves behind, beside the stores and the checkpoints."""

    versions: Versions
    evaluations: dict[str, Results]


def algorithm_1(run: Context) -> Finished:
    """Run the whole loop, or what is left of it."""
    versions = setup(run)
    evaluations = {"base": evaluate(run, "base", versions.policy)}
    for iteration in range(1, run.config.method.iterations + 1):
        collect(run, iteration, versions.policy)
        if run.config.method.kind == "vlaw":
            versions = dream(run, iteration, versions)
            if iteration <= run.config.reward.train_iterations:
                versions = judge(run, iteration, versions)
            imagine(run, iteration, versions)
            score(run, iteration, versions)
        versions = improve(run, iteration, versions)
        name = f"{run.config.method.kind}-{iteration}"
        evaluations[name] = evaluate(run, name, versions.policy)
    if run.config.evaluation.control:
        evaluations["control"] = same_steps_control(run)
    return Finished(versions, evaluations)


def same_steps_control(run: Context) -> Results:
    """The base policy after as many steps on demonstrations alone as the loop took in all.

    Without it an undertrained base fakes a gain: any further training would look like the method.
    """
    return evaluate(run, "control", improve.on_demonstrations(run))
