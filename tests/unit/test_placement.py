import pytest

from cluster.placement import (
    Node,
    Process,
    ShortageError,
    big_enough,
    describe,
    place,
    processes,
)
from configs.run import ClusterConfig, MethodConfig, RunConfig, TaskOverrides

GPU_RIG = [
    Node("head", cpus=8, gpus=0),
    Node("gpu-1", cpus=16, gpus=2),
    Node("robot-host", cpus=4, gpus=0, resources=("robot",), robots=1),
]


def test_stages_share_nodes_but_processes_of_one_stage_do_not():
    plan = [
        Process("imagine", "worker", 2, cpus=1, gpus=1),
        Process("train", "learner", 2, cpus=1, gpus=1),
    ]
    assert [item.nodes for item in place(plan, GPU_RIG)] == [("gpu-1", "gpu-1"), ("gpu-1", "gpu-1")]


def test_fractions_of_a_gpu_fill_it_exactly():
    plan = [Process("imagine", "worker", 6, cpus=1, gpus=1 / 3)]
    assert place(plan, GPU_RIG)[0].nodes == ("gpu-1",) * 6
    with pytest.raises(ShortageError):
        place([Process("imagine", "worker", 7, cpus=1, gpus=1 / 3)], GPU_RIG)


def test_a_robot_process_goes_to_the_robots_host():
    plan = [Process("collect", "robot", 1, cpus=1, gpus=0, resource="robot")]
    assert place(plan, GPU_RIG)[0].nodes == ("robot-host",)


def test_a_shortage_says_what_is_missing_and_what_there_is():
    plan = [Process("imagine", "imagination draw", 3, cpus=1, gpus=1)]
    with pytest.raises(
        ShortageError, match=r"3 x imagination draw \(1 CPU, 1 GPU each\).*gpu-1: 16 CPU, 2 GPU"
    ):
        place(plan, GPU_RIG)


def test_a_missing_robot_says_how_to_start_its_node():
    plan = [Process("collect", "robot", 1, cpus=1, gpus=0, resource="arm")]
    with pytest.raises(ShortageError, match="--resources="):
        place(plan, GPU_RIG)


def test_every_task_has_its_own_workers_in_the_plan():
    run = RunConfig(task={"book": TaskOverrides(workers=3), "draw": TaskOverrides()})
    counts = {p.name: p.count for p in processes(run, ["book", "draw"])}
    assert counts == {
        "robot": 2, "policy server": 1, "world model learner": 1, "reward learner": 1,
        "policy learner": 1, "imagination book": 3, "imagination draw": 1, "reward scorer": 1,
    }  # fmt: skip


def test_filtered_bc_needs_no_world_model():
    run = RunConfig(task={"book": TaskOverrides()}, method=MethodConfig(kind="filtered_bc"))
    assert {p.stage for p in processes(run, ["book"])} == {"collect", "train policy"}


def test_the_plan_in_words_counts_and_places():
    run = RunConfig(task={"book": TaskOverrides()}, cluster=ClusterConfig(worker_cpus=2))
    text = describe(place(processes(run, ["book"]), [Node("here", 8, 0, ("robot",), 2)]))
    assert "2 x robot" in text
    assert "on here" in text


def test_the_node_that_a_plan_is_drawn_on_holds_its_widest_stage_and_no_more():
    plan = [
        Process("collect", "robot", 2, cpus=1, gpus=0, resource="arm"),
        Process("imagine", "worker", 3, cpus=2, gpus=0.5),
        Process("imagine", "scorer", 1, cpus=1, gpus=1),
    ]
    node = big_enough(plan)
    assert (node.cpus, node.gpus, node.robots, node.resources) == (7, 2.5, 2, ("arm",))
    place(plan, [node])
    with pytest.raises(ShortageError):
        place([*plan, Process("imagine", "one more", 1, cpus=0, gpus=0.5)], [node])


def test_an_evaluation_places_robots_and_their_policy_only():
    plan = processes(RunConfig(job="evaluate", task={"book": TaskOverrides()}), ["book"])
    assert [process.name for process in plan] == ["robot", "policy server"]


def test_nodes_of_the_same_name_have_room_of_their_own():
    twins = [Node("gpu", cpus=4, gpus=1), Node("gpu", cpus=4, gpus=1)]
    plan = [Process("imagine", "worker", 2, cpus=1, gpus=1)]
    assert place(plan, twins)[0].nodes == ("gpu", "gpu")
    with pytest.raises(ShortageError):
        place([Process("imagine", "worker", 3, cpus=1, gpus=1)], twins)
