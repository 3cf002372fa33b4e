"""Whether the nodes of a cluster are fit for a run, and what is said when one is not."""

from pathlib import Path

import pytest
from ray.exceptions import RayTaskError

from cluster import nodes
from cluster.placement import Node, ShortageError, hosts, processes
from configs.run import ClusterConfig, RunConfig, TaskOverrides

HEAD = Node("head", 8, 0, id="h")
GPU = Node("gpu", 16, 1, id="g")
ROBOT = Node("robot", 2, 0, ("robot",), 2, id="r")
ON_GPUS = ClusterConfig(worker_gpus=0.5, scorer_gpus=0.5, learner_gpus=1, start_timeout_s=60)


def run_config(**settings) -> RunConfig:
    return RunConfig(task={"book": TaskOverrides()}, cluster=ON_GPUS, **settings)


class Lab:
    """Nodes that come up one after the other, each with its own view of the run's folder."""

    def __init__(self, monkeypatch, *arrivals: list[Node]):
        self.arrivals, self.asked, self.now = list(arrivals), [], 0.0
        self.blind: dict[str, nodes.Sight | RayTaskError] = {}
        monkeypatch.setattr(nodes, "nodes", lambda resource: self._next())
        monkeypatch.setattr(nodes, "request_resources", self._ask)
        monkeypatch.setattr(nodes, "on_every_node", self._look)
        monkeypatch.setattr(nodes.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(nodes.time, "sleep", self._sleep)

    def _ask(self, bundles):
        self.asked.append(bundles)

    def _sleep(self, seconds):
        self.now += seconds

    def _next(self):
        return self.arrivals.pop(0) if len(self.arrivals) > 1 else self.arrivals[0]

    def _look(self, function, ids, timeout_s, note):
        return [self._sight(name, note) for name in ids]

    def _sight(self, node_id, note):
        if node_id in self.blind:
            return self.blind[node_id]
        note.with_name(f"{note.name}-{node_id}").write_text(note.read_text())
        return nodes.Sight(nodes.versions())


def test_a_cluster_that_grows_is_waited_for(monkeypatch):
    """The autoscaler is asked for the stage that is short, robots left out; at the end let go."""
    lab = Lab(monkeypatch, [HEAD, ROBOT], [HEAD, ROBOT], [HEAD, ROBOT, GPU])
    said = []
    placed = nodes.placed_in_time(run_config(), ["book"], said.append)
    assert {p.nodes for p in placed if p.process.name == "robot"} == {("robot", "robot")}
    assert {p.nodes for p in placed if p.process.gpus} == {("gpu",)}
    assert lab.asked == [[{"CPU": 0.5, "GPU": 0.5}], []]
    assert len(said) == 1
    assert said[0].startswith("  waiting for nodes (cluster.start_timeout_s=60): stage 'collect'")


def test_a_cluster_that_stays_too_small_is_named_after_the_time_limit(monkeypatch):
    lab = Lab(monkeypatch, [HEAD, ROBOT])
    with pytest.raises(ShortageError, match="The cluster has head: 8 CPU, 0 GPU; robot: 2 CPU"):
        nodes.placed_in_time(run_config(), ["book"], lambda line: None)
    assert 60 < lab.now < 65
    assert lab.asked[-1] == []


def test_a_robot_without_gpus_needs_no_folder_when_all_else_is_on_gpus():
    plan = processes(run_config(), ["book"])
    assert hosts(plan, [HEAD, GPU, ROBOT]) == [GPU]
    on_cpus = processes(RunConfig(task={"book": TaskOverrides()}), ["book"])
    assert hosts(on_cpus, [HEAD, GPU, ROBOT]) == [HEAD, GPU, ROBOT]


def test_nodes_that_see_the_folder_are_fine_and_nothing_is_left_there(monkeypatch, tmp_path):
    Lab(monkeypatch, [HEAD, GPU, ROBOT])
    nodes.check(run_config(), ["book"], tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("sight", "said"),
    [
        (
            nodes.Sight(nodes.versions(), "No such file or directory"),
            r"node gpu does not see the run's folder .* \(No such file or directory\)\. Mount",
        ),
        (
            nodes.Sight(nodes.versions()),  # wrote its answer into another storage
            r"node gpu does not see the run's folder .* \(what it writes there does not arrive",
        ),
        (
            nodes.Sight(nodes.versions() | {"torch": "1.0"}),
            r"node gpu has other packages than the driver: torch 1\.0 instead of \d",
        ),
        (
            RayTaskError("look", "ModuleNotFoundError: No module named 'numpy'", ImportError()),
            r"node gpu cannot run this code: RayTaskError: ModuleNotFoundError: No module named",
        ),
    ],
)
def test_a_node_that_is_not_fit_is_named(monkeypatch, tmp_path, sight, said):
    lab = Lab(monkeypatch, [HEAD, GPU, ROBOT])
    lab.blind["g"] = sight
    with pytest.raises(ValueError, match=said):
        nodes.check(run_config(), ["book"], tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_robot_host_may_do_without_the_folder(monkeypatch, tmp_path):
    lab = Lab(monkeypatch, [HEAD, GPU, ROBOT])
    lab.blind["r"] = nodes.Sight(nodes.versions(), "No such file or directory")
    nodes.check(run_config(), ["book"], tmp_path)


def test_what_differs_is_told_in_words():
    assert nodes.differing({"torch": "2", "numpy": "1"}, {"torch": "2", "numpy": "1"}) == ""
    said = nodes.differing({"torch": "2", "numpy": "1"}, {"torch": "3"})
    assert said == "torch 3 instead of 2, numpy missing instead of 1"


def test_a_node_looks_for_the_note_where_it_is_told(monkeypatch, tmp_path):
    class Where:
        def get_node_id(self):
            return "n"

    monkeypatch.setattr(nodes.ray, "get_runtime_context", Where)
    (tmp_path / "note").write_text("hello")
    assert nodes.look(tmp_path / "note").trouble == ""
    assert (tmp_path / "note-n").read_text() == "hello"
    assert nodes.look(Path("/nowhere/note")).trouble == "No such file or directory"
