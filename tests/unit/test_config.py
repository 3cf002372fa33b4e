import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException

from configs import schema
from configs.run import RunConfig, TaskConfig, TaskOverrides
from configs.training import TrainConfig

schema.register()
GIVEN = ["policy.checkpoint=/models/pi05", "world_model.checkpoint=/models/ctrl_world"]


@pytest.fixture
def run_of(request):
    folder = str(request.config.rootpath / "configs")

    def composed(*overrides):
        with initialize_config_dir(folder, version_base=None):
            return schema.to_run(compose("run", overrides=list(overrides)))

    return composed


def test_full_scale_is_the_papers_experiment(run_of):
    run = run_of("scale=full", *GIVEN)
    assert sorted(run.task) == ["book", "draw", "erase", "scoop", "stack"]
    numbers = [run.for_task(name) for name in run.task]
    assert {(n.rollouts, n.imagine, n.alpha) for n in numbers} == {(50, 500, 0.8)}
    assert (run.policy.train.steps, run.policy.train.batch) == (2000, 256)
    assert (run.world_model.train.steps, run.reward.train.steps, run.reward.train.batch) == (
        50_000,
        200,
        128,
    )
    assert run.method.iterations == 2
    assert (run.policy.kind, run.world_model.kind, run.reward.kind) == (
        "pi05",
        "ctrl_world",
        "qwen",
    )


def test_one_task_may_have_more_workers_than_the_others(run_of):
    run = run_of("task=all", "task.draw.workers=4")
    assert {name: run.for_task(name).workers for name in run.task} == {
        "book": 1, "stack": 1, "erase": 1, "scoop": 1, "draw": 4,
    }  # fmt: skip


def test_a_value_on_the_command_line_beats_the_scale(run_of):
    assert run_of("scale=full", "policy.train.steps=7", *GIVEN).policy.train.steps == 7


@pytest.mark.parametrize(
    ("override", "flag"),
    [
        ("polciy.kind=pi05", "polciy"),
        ("task.drwa.workers=4", "task.drwa"),
        ("policy.train.steps=many", "policy.train.steps"),
        ("task=bok", "task/bok"),
    ],
)
def test_hydra_refuses_what_the_schema_does_not_know(run_of, override, flag):
    with pytest.raises(HydraException, match=flag):
        run_of(override)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["each_task.alpha=1.5"], r"each_task.alpha=1.5 must lie inside \(0, 1\)"),
        (["task=book", "task.book.alpha=0"], r"task.book.alpha=0.0 must lie inside"),
        (["scale=full"], "policy.checkpoint is not set: give policy.checkpoint=<folder>"),
        (["policy.kind=pi05"], "policy.checkpoint=base is an embedded model, not pi05"),
        (["policy.kind=pi5"], "Did you mean policy.kind=pi05"),
        (["robot=recorded"], "needs robot.path="),
        (["robot=recorded", "robot.path=/x", "reward=qwen"], "give robot.untitled=false"),
        (["task=recorded"], "zero tasks: choose some with task=all"),
        (
            ["cluster.num_cpus=1"],
            r"cluster.num_cpus=1 is too small: the widest stage needs 2 CPUs \(robot.count=3 and a",
        ),
        (["policy.execute=16"], "policy.execute=16 must lie in 1..policy.horizon=15"),
        (["out="], "give out=<folder>"),
        (["robot.height=50"], "robot.height=50 and robot.width=80 must be multiples of 8"),
        (["method.iterations=0"], "method.iterations=0 must be at least 1"),
        (["world_model.adapter=shipped"], "needs world_model.adapter_path="),
    ],
)
def test_nonsense_is_one_message_that_names_the_flag(run_of, overrides, message):
    with pytest.raises(ValueError, match=message):
        run_of(*overrides)


def test_an_unknown_task_is_named_with_the_known_ones():
    with pytest.raises(
        ValueError, match="task='fold' is not one of book, draw, erase, scoop, stack"
    ):
        RunConfig(task={"fold": TaskOverrides()})


def test_more_workers_than_a_local_ray_of_given_size_holds(run_of):
    """5 workers of half a CPU and a scorer of half a CPU need 3."""
    assert run_of("task=book", "task.book.workers=5").peak_cpus() == 3.0
    with pytest.raises(ValueError, match="needs 3 CPUs"):
        run_of("task=book", "task.book.workers=5", "cluster.num_cpus=2")


@pytest.mark.parametrize("count", ["0", "-1", "many", "1.5", "true"])
def test_workers_are_a_number_or_auto(run_of, count):
    assert run_of("task=book", "task.book.workers=auto").for_task("book").fewest_workers == 1
    assert run_of("task=book", "each_task.workers=auto").for_task("book").workers == "auto"
    with pytest.raises(ValueError, match="must be a number of at least 1, or auto"):
        run_of("task=book", f"task.book.workers={count}")


def test_a_task_cannot_accept_more_than_it_imagines_or_end_below_its_minimum(run_of):
    assert run_of("task=book", "task.book.accept=20").for_task("book").accept == 20
    with pytest.raises(ValueError, match=r"task.book.accept=2000 is more than the task.book.imag"):
        run_of("task=book", "task.book.accept=2000")
    with pytest.raises(ValueError, match=r"task.book.accept=2 would always end below"):
        run_of("task=book", "task.book.accept=2", "task.book.min_success=3")


@pytest.mark.parametrize("field", ["rollouts", "imagine", "min_success"])
def test_counts_below_one_are_refused(field):
    with pytest.raises(ValueError, match=f"each_task.{field}=0 must be at least 1"):
        TaskConfig(**{field: 0})


def test_a_training_of_no_steps_is_refused():
    with pytest.raises(ValueError, match=r"train\.steps=0"):
        TrainConfig(steps=0)
