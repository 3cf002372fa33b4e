"""Algorithm 1 of VLAW (arXiv 2602.12063), to be read beside the paper.

    for i in 1..K_iter:
      (1) collect   roll out the policy on the real robot, K per task, labelled    -> D_real grows
      (2) dream     post-train the world model on D_real and D_DROID (Eq. 1, 2)
          judge     in iteration 1: post-train the reward model on the labels
      (3) imagine   N per task in the world model, from real first frames
          score     keep those with P('yes') > alpha (Eq. 3)                       -> D_syn+
      (4) improve   post-train the policy on successes of D_real and D_syn (Eq. 4)
    evaluate on fixed starts that training never sees; report

Failures train the world model and the reward model; only successes train the policy. Every line is
a stage with a manifest: the same command after any stop continues at the first one missing.
"""

from collections import Counter
from dataclasses import replace
from typing import Any

from cluster import learning, policy_learning
from cluster.calibration import calibration
from cluster.collecting import collect, demonstrations, evaluate
from cluster.context import CONTROL_VERSION, Context, Versions
from cluster.imagining import imagine
from cluster.scoring import score, starts_agree
from cluster.setup import publish_bases, publish_policy
from cluster.truth import truth
from learners.selection import real_successes

Results = dict[str, Any]


def algorithm_1(run: Context) -> Versions:
    """Run the whole loop, or what is left of it; returns the newest versions."""
    stage, config = run.stages.run, run.config
    stage("demonstrations", lambda: demonstrations(run))
    stage("base", lambda: publish_bases(run))
    newest = Versions()
    stage("evaluate base", lambda: evaluate(run, "base", newest.policy))
    if config.method.kind == "vlaw" and config.world_model.checkpoint != "scratch":
        stage("0 replay quality", lambda: learning.replay_quality(run, 0))
    for i in range(1, config.method.iterations + 1):
        newest = one_iteration(run, i, newest)
    wanted = config.evaluation.control and config.method.update_policy
    if wanted and config.evaluation.episodes and config.robot.kind != "recorded":
        same_steps_control(run)
    return newest


def evaluation_alone(run: Context) -> None:
    """``job=evaluate``: the policy as it is given; ``job=loop`` in the same folder goes on."""
    run.stages.run("policy", lambda: publish_policy(run))
    run.stages.run("evaluate base", lambda: evaluate(run, "base", Versions().policy))


def one_iteration(run: Context, i: int, newest: Versions) -> Versions:
    """Lines (1) to (4) and the evaluation of what came out."""
    stage, method = run.stages.run, run.config.method.kind
    stage(f"{i} collect", lambda: collect(run, i, newest.policy))
    if method == "vlaw":
        newest = inside_the_world_model(run, i, newest)
    if not run.config.method.update_policy:
        return newest
    newest = improve(run, i, newest)
    stage(f"evaluate {method}-{i}", lambda: evaluate(run, f"{method}-{i}", newest.policy))
    return newest


def inside_the_world_model(run: Context, i: int, newest: Versions) -> Versions:
    """Lines (2) and (3): better models from D_real, then N trajectories per task and verdicts."""
    stage = run.stages.run
    stage(f"{i} train world model", lambda: learning.dream(run, i, newest))
    newest = replace(newest, world_model=i)
    stage(f"{i} replay quality", lambda: learning.replay_quality(run, i))
    if i <= run.config.reward.train_iterations:
        newest = judge(run, i, newest)
    stage(f"{i} imagine", lambda: imagine(run, i, newest))
    stage(f"{i} score", lambda: score(run, i, newest))
    if run.config.robot.kind == "mujoco" and run.config.evaluation.truth != "none":
        stage(f"{i} truth", lambda: truth(run, i, newest))
    return newest


def judge(run: Context, i: int, newest: Versions) -> Versions:
    """Post-train the reward model, unless D_real shows one outcome only and there is an old one.

    Raises:
        ValueError: there is no reward model to fall back on.
    """
    stage = run.stages.run
    successes, failures = stage(f"{i} outcomes", lambda: list(learning.outcomes(run)))
    if not successes or not failures:
        reason = f"{successes} successes and {failures} failures: training needs both outcomes"
        if run.config.reward.checkpoint == "scratch" and newest.reward == 0:
            raise ValueError(
                f"the reward model cannot be trained from scratch on D_real: {reason}. Collect "
                "more (each_task.rollouts), or give reward.checkpoint=<folder>"
            )
        run.reporter.say(f"  reward model kept at v{newest.reward}: {reason}")
        stage(f"{i} reward refused", lambda: {"reason": reason})
    else:
        stage(f"{i} train reward", lambda: learning.judge(run, i, newest))
        newest = replace(newest, reward=i)
    name = f"{i} calibration"
    stage(name, lambda: calibration(run, newest.reward, name))
    return newest


def improve(run: Context, i: int, newest: Versions) -> Versions:
    """Line (4), with the guard: a task whose D_syn+ is too small does not update the policy."""
    stage = run.stages.run
    refused: dict[str, str] = stage(f"{i} refusals", lambda: refusals(run, newest))
    for task, reason in refused.items():
        run.reporter.say(f"  policy update refused for {task}: {reason}")
    if set(refused) == set(run.tasks):
        run.reporter.say(f"  no task may update the policy: it stays at v{newest.policy}")
        return newest
    if run.config.method.kind == "dsrl":
        stage(f"{i} train policy", lambda: policy_learning.steer(run, i, newest))
    else:
        stage(f"{i} train policy", lambda: policy_learning.improve(run, i, newest, list(refused)))
    return replace(newest, policy=i)


def refusals(run: Context, newest: Versions) -> dict[str, str]:
    """Why a task may not update the policy; nothing to say about the tasks that may.

    An update on an empty D_syn+ is how a re-implementation of the paper fell from 78 to 17 percent.
    """
    if run.config.method.kind != "vlaw":
        store = run.reader("real")
        successes = real_successes(store).ids
        done = {store.provenance(name).task for name in successes}
        return {task: "no real success" for task in run.tasks if task not in done}
    found = policy_learning.accepted_ids(run, newest.reward)
    store = run.reader("real")
    done = Counter(store.provenance(name).task for name in real_successes(store).ids)
    counts = run.stages.result(f"{newest.world_model} score") or {}
    reasons = {}
    for task in run.tasks:
        numbers, accepted = run.config.for_task(task), len(found[task])
        agrees = starts_agree(counts.get(task, {}))
        if agrees and agrees.area < numbers.min_agreement:
            reasons[task] = (
                f"what is imagined does not follow what really happened from the same start: AUC "
                f"{agrees.area:.2f} ({agrees.interval.low:.2f} to {agrees.interval.high:.2f}) of "
                f"{agrees.successes + agrees.failures} starts, below task.{task}.min_agreement="
                f"{numbers.min_agreement:g}. " + kept(done[task])
            )
        elif accepted < numbers.min_success:
            reasons[task] = (
                f"D_syn+ holds {accepted} trajectories with P('yes') > {numbers.alpha:g}, fewer "
                f"than task.{task}.min_success={numbers.min_success}; see the P('yes') histograms. "
                + kept(done[task])
            )
    return reasons


def kept(successes: int) -> str:
    """What the policy that all tasks share still sees of a refused one."""
    if successes:
        return f"Its real successes ({successes}) stay among what the shared policy learns from"
    return "It has no real success either: if other tasks train the shared policy, it may forget"


def same_steps_control(run: Context) -> None:
    """The base policy after as many steps on demonstrations alone as the loop took in all.

    Without it an undertrained base fakes a gain: any further training would look like the method.
    """
    stage, iterations = run.stages.run, run.config.method.iterations
    stage("train control", lambda: policy_learning.control(run, CONTROL_VERSION, iterations))
    stage("evaluate control", lambda: evaluate(run, "control", CONTROL_VERSION))
