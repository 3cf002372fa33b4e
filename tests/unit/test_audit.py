"""The audit page: an honest sample, labels that stay, Table 3 by hand and by simulation, and a
server that strangers cannot make act."""

import csv
import http.client
import io
import json
import math
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from cluster.auditing import audit, audit_labels, check_audited
from cluster.context import Context
from configs.audit import AuditConfig
from configs.reward import RewardConfig
from configs.run import RunConfig, TaskOverrides
from configs.training import TrainConfig
from contracts.statistics import confusion, wilson
from contracts.types import Label, Provenance, Verdict
from envs.fake import counting_trajectory
from learners.audited import LabelledEpisodes, RewardSources, trainable
from learners.reward import RewardData
from learners.selection import Selection, held_out
from replay.store import ReplayStore
from services import audit_stores
from services.audit import AuditRun
from services.audit_labels import AuditLabel, LabelBook, from_csv, read_labels, to_csv
from services.audit_sample import Drawing, allocate, draw
from services.audit_server import STATIC, AuditServer
from services.audit_table import estimated, rate, table3
from tools.chromium import Chromium

ROOT = Path(__file__).resolve().parents[2]
ALPHA = {"book": 0.8, "wipe": 0.5}
WHEN = "2026-11-26T10:00:00+00:00"


def verdicts_of(scores: dict[str, float], version: int = 1) -> dict[str, Verdict]:
    return {name: Verdict(name, p, min(1.0, p + 0.3), version) for name, p in scores.items()}


def said(name: str, answer: str, task: str = "book") -> AuditLabel:
    return AuditLabel(name, answer, "Ada", WHEN, task, "near", 1)


# --- the sample


def hundred() -> dict[str, Verdict]:
    return verdicts_of({f"t{k:02}": k / 100 for k in range(100)})


def test_strata_are_the_quarter_near_alpha_the_likeliest_of_the_others_and_the_rest():
    sample = draw("book", hundred(), 0.62, 40, seed=3)
    near, top, rest = sample.strata
    assert [s.name for s in sample.strata] == ["near", "top", "rest"]
    assert (near.size, near.low, near.high) == (25, 0.5, 0.74)
    assert (top.size, top.low, top.high) == (25, 0.75, 0.99)
    assert (rest.size, rest.low, rest.high) == (50, 0.0, 0.49)
    assert [len(s.drawn) for s in sample.strata] == [16, 12, 12]
    for stratum in sample.strata:
        assert all(stratum.low <= int(name[1:]) / 100 <= stratum.high for name in stratum.drawn)
    assert len(set(sample.order)) == 40


def test_a_sample_follows_from_its_seed_alone_and_is_shown_shuffled():
    one, other = draw("book", hundred(), 0.8, 40, 3), draw("book", hundred(), 0.8, 40, 4)
    backwards = dict(reversed(hundred().items()))
    assert draw("book", backwards, 0.8, 40, 3) == one
    assert set(one.order) != set(other.order)
    places = [one.stratum(name) for name in one.order]
    assert places != sorted(places)  # the strata are mixed
    assert sum(a != b for a, b in pairwise(places)) > 10


def test_a_scoring_error_belongs_to_no_stratum():
    broken = Verdict("broken", math.nan, math.nan, 1, "out of memory")
    sample = draw("book", hundred() | {"broken": broken}, 0.8, 1000, 0)
    assert (sample.population, sample.unscored) == (100, 1)
    assert sorted(sample.order) == sorted(hundred())


@pytest.mark.parametrize(
    ("sizes", "n", "wanted"),
    [
        ((25, 25, 50), 40, [16, 12, 12]),
        ((25, 25, 50), 6, [2, 2, 2]),
        ((3, 3, 50), 40, [3, 3, 34]),  # what small ones cannot give the others do
        ((1, 1, 0), 40, [1, 1, 0]),
    ],
)
def test_labels_are_shared_out(sizes, n, wanted):
    assert allocate(sizes, n) == wanted


# --- Table 3


def test_rates_of_a_weighted_sample_by_hand():
    """Weights 10, 10, 1, 1: three hits of the four among: (10 + 10 + 1) / 22; effective
    22^2 / (100 + 100 + 1 + 1)."""
    weight = np.array([10.0, 10.0, 1.0, 1.0, 5.0])
    found = rate(np.array([1, 1, 1, 0, 1], bool), np.array([1, 1, 1, 1, 0], bool), weight)
    assert found.value == pytest.approx(21 / 22)
    assert found.effective == pytest.approx(484 / 202)
    assert found.interval == wilson(21 / 22 * 484 / 202, 484 / 202)


def test_equal_weights_give_the_counts_and_wilson_intervals_of_a_plain_table():
    rng = np.random.default_rng(0)
    p_yes, success = rng.random(60), rng.random(60) < 0.4
    plain = confusion(p_yes, success, 0.5)
    found = estimated(p_yes > 0.5, success, np.full(60, 7.0))
    assert found.true_positive == 7 * plain.true_positive
    assert found.true_negative == 7 * plain.true_negative
    for mine, value, interval in (
        (found.precision, plain.precision, plain.precision_interval),
        (found.recall, plain.recall, plain.recall_interval),
        (found.false_positive_rate, plain.false_positive_rate, plain.false_positive_interval),
    ):
        assert mine.value == pytest.approx(value)
        assert mine.interval.low == pytest.approx(interval.low)
        assert mine.interval.high == pytest.approx(interval.high)


def test_estimates_hit_the_whole_set_on_average_and_intervals_hold_it():
    """400 draws of 40 from 300 whose truth is known. The plain shares of the sample would be off:
    the strata that are drawn from more densely are other trajectories than the rest."""
    rng = np.random.default_rng(1)
    p = rng.beta(0.7, 1.0, 300)
    scores = {f"t{k}": float(p[k]) for k in range(300)}
    truth = {name: bool(rng.random() < 0.1 + 0.8 * score) for name, score in scores.items()}
    everything = verdicts_of(scores)
    labels = {n: said(n, "success" if good else "failure") for n, good in truth.items()}
    accepted, success = p > 0.7, np.array(list(truth.values()))
    precision, recall = success[accepted].mean(), accepted[success].mean()
    found, plain, held = [], [], Counter()
    for seed in range(400):
        line = table3([draw("book", everything, 0.7, 40, seed)], everything, labels)[1]
        one = line.estimate
        found.append((one.true_positive, one.false_negative))
        plain.append(line.counts.recall)
        held["precision"] += one.precision.interval.low <= precision <= one.precision.interval.high
        held["recall"] += one.recall.interval.low <= recall <= one.recall.interval.high
    mean, error = np.mean(found, axis=0), np.std(found, axis=0) / 20
    true = (accepted & success).sum(), (~accepted & success).sum()
    assert np.all(np.abs(mean - true) < 3 * error)
    assert np.mean(plain) > recall + 0.05
    assert min(held.values()) >= 0.94 * 400


def test_a_stratum_without_a_label_leaves_no_estimate_and_unsure_is_none():
    sample = draw("book", hundred(), 0.8, 40, 0)
    near, top, rest = sample.strata
    labels = {name: said(name, "success") for name in (*near.drawn, *top.drawn)}
    labels |= {name: said(name, "unsure") for name in rest.drawn}
    for line in table3([sample], hundred(), labels):
        assert (line.estimate, line.missing) == (None, "rest of book")
        assert (line.labelled, line.unsure, line.counts.n) == (28, 12, 28)
    labels[rest.drawn[0]] = said(rest.drawn[0], "failure")
    for line in table3([sample], hundred(), labels):
        assert line.estimate is not None
        total = [line.estimate.true_positive, line.estimate.false_positive]
        total += [line.estimate.false_negative, line.estimate.true_negative]
        assert sum(total) == pytest.approx(100)  # the weights add up to the population


def test_both_rules_are_told_apart_per_task_and_in_all():
    """P('yes') 0.4 of mass 0.5 is the likelier answer, and below the threshold."""
    scores = {f"{task}{k}": 0.4 for task in ("a", "b") for k in range(4)}
    verdicts = {name: Verdict(name, p, 0.5, 1) for name, p in scores.items()}
    samples = [
        draw(task, {n: v for n, v in verdicts.items() if n[0] == task}, 0.8, 6, 0) for task in "ab"
    ]
    labels = {name: said(name, "failure") for name in scores}
    lines = table3(samples, verdicts, labels)
    assert [line.task for line in lines] == ["a", "a", "b", "b", "all tasks", "all tasks"]
    assert [line.counts.false_positive for line in lines] == [4, 0, 4, 0, 8, 0]
    assert [line.counts.true_negative for line in lines] == [0, 4, 0, 4, 0, 8]


# --- labels


def test_labels_outlive_the_process_and_the_newest_counts(tmp_path):
    book = LabelBook(tmp_path)
    book.add([said("a", "success")])
    book.add([said("b", "unsure"), said("a", "failure")])
    with pytest.raises(ValueError, match="being written by process"):
        LabelBook(tmp_path)
    book.close()
    again = LabelBook(tmp_path)
    assert again.newest == {"a": said("a", "failure"), "b": said("b", "unsure")}
    assert (tmp_path / "labels.jsonl").read_text().count('"success"') == 1  # nothing is overwritten
    again.close()


@pytest.mark.parametrize("kept", [1, 40, 200])
def test_a_torn_line_never_counts_in_part(tmp_path, kept):
    book = LabelBook(tmp_path)
    book.add([said("a", "success")])
    first = (tmp_path / "labels.jsonl").read_bytes()
    book.add([said("b", "success"), said("c", "success")])
    book.close()
    whole = (tmp_path / "labels.jsonl").read_bytes()
    (tmp_path / "labels.jsonl").write_bytes(whole[: len(first) + kept])
    assert set(read_labels(tmp_path / "labels.jsonl")) == {"a"}
    again = LabelBook(tmp_path)
    again.add([said("d", "failure")])
    again.close()
    assert set(read_labels(tmp_path / "labels.jsonl")) == {"a", "d"}


def test_a_damaged_line_is_named(tmp_path):
    (tmp_path / "labels.jsonl").write_text('[]\n[{"answer": "success"}]\n')
    with pytest.raises(ValueError, match=r"labels\.jsonl line 2 is damaged"):
        LabelBook(tmp_path)
    (tmp_path / "labels.jsonl").unlink()
    LabelBook(tmp_path).close()  # and the lock was let go


def test_a_full_disk_leaves_no_half_label(tmp_path, monkeypatch):
    book = LabelBook(tmp_path)
    book.add([said("a", "success")])

    def full(_descriptor):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            book.add([said("b", "success")])
    assert set(book.newest) == {"a"}
    book.add([said("c", "success")])
    book.close()
    assert set(read_labels(tmp_path / "labels.jsonl")) == {"a", "c"}


def known(name: str) -> dict:
    return {"a": {"task": "book", "stratum": "near", "reward_version": 1}}[name[0]]


def test_csv_comes_back_as_it_went():
    labels = [said("a1", "success"), replace(said("a2", "unsure"), who="Ben B. (night)"[:6])]
    assert from_csv(to_csv(labels), known) == labels
    excel = "\ufeff" + to_csv(labels).replace("\n", "\r\n")
    assert from_csv(excel, known) == labels


HEAD = "trajectory_id,answer,who\n"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "line 1: no column trajectory_id"),
        ("trajectory_id,answer\na1,success\n", "line 1: no column who"),
        (HEAD, "line 2: no labels"),
        (HEAD + "a1,success,Ada\nb1,success,Ada\n", "line 3: no imagined trajectory 'b1'"),
        (HEAD + "a1,yes,Ada\n", "line 2: answer 'yes' is not one of success, failure, unsure"),
        (HEAD + "a1,success,\n", "line 2: who '' is no name"),
        (HEAD + "a1,success,=1+1\n", "line 2: who '=1\\+1' is no name"),
        (HEAD + "a1,success\n", "line 2: more or fewer cells"),
        (HEAD + "a1,success,Ada,more\n", "line 2: more or fewer cells"),
        (HEAD + "a1,success,Ada\na1,failure,Ada\n", "line 3: trajectory 'a1' occurs twice"),
        (HEAD + 'a1,"success,Ada\n', "from line 2 on: unexpected end"),
        (HEAD + "a\0,success,Ada\n", "line 1: this is no CSV"),
        ("trajectory_id,answer,who,when\na1,success,Ada,noon\n", "line 2: when 'noon' is no time"),
        ("trajectory_id,answer,who,when\na1,success,Ada,2026-11-26\n", "no time zone"),
    ],
)
def test_a_wrong_csv_is_refused_with_line_and_reason(text, reason):
    with pytest.raises(ValueError, match=reason):
        from_csv(text, known)


# --- a run


def imagine(folder: Path, task: str, scores: list[float], first_seed: int, start: int = 0) -> None:
    """Trajectories ``<task>-<k>``, half of them from frame 2 of ``real-<task>``, and verdicts."""
    store = ReplayStore.create_or_open(folder)
    for k in range(start, start + len(scores)):
        parent = (f"real-{task}", 2) if k % 2 else ("gone", 0)
        made = Provenance(f"{task}-{k}", "imagined", task, 1, first_seed + k, 1, 2, *parent)
        store.add(counting_trajectory(made, 24, "timeout"), None)
    found = [Verdict(f"{task}-{k}", p, (1 + p) / 2, 1) for k, p in enumerate(scores, start)]
    error = f"{task}-{start}"
    found[0] = Verdict(error, math.nan, math.nan, 1, "out of memory")
    store.add_verdicts(found)
    store.close()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run: per task one real episode, imagined ones with P('yes') in equal steps, one error."""
    folder = tmp_path_factory.mktemp("audit") / "run"
    real = ReplayStore.create_or_open(folder / "stores" / "real")
    for task in ALPHA:
        story = Provenance(f"real-{task}", "real", task, 1, 5, 1)
        real.add(counting_trajectory(story, 30, "done"), Label(f"real-{task}", True, "human", "Cy"))
    real.close()
    imagine(folder / "stores" / "imagined", "book", [k / 29 for k in range(30)], 100)
    imagine(folder / "stores" / "imagined", "wipe", [k / 9 for k in range(10)], 200)
    settings = {"each_task": {"alpha": 0.8}, "task": {"wipe": {"alpha": 0.5}}}
    (folder / "run.json").write_text(json.dumps({"settings": settings, "job": "loop"}))
    return folder


@pytest.fixture
def folder(made, tmp_path):
    return shutil.copytree(made, tmp_path / "run")


@contextmanager
def served(folder: Path, token: str = "", **drawing):
    run = AuditRun(folder, Drawing(**({"n": 12, "seed": 0, "alpha": ALPHA} | drawing)))
    with AuditServer(("127.0.0.1", 0), run, token) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
            run.close()


def call(server: AuditServer, method: str, path: str, body: bytes | dict | None = None, **headers):
    """(status, body): JSON where the server says so, else bytes."""
    port = server.server_address[1]
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    own = {"Origin": f"http://127.0.0.1:{port}"} | headers
    content = json.dumps(body).encode() if isinstance(body, dict) else body
    client.request(method, path, content, {k: v for k, v in own.items() if v})
    answer = client.getresponse()
    found = answer.read()
    client.close()
    json_kind = answer.headers["Content-Type"] == "application/json"
    return answer.status, json.loads(found) if json_kind else found


def label_all(server: AuditServer, task: str, answer: str = "success") -> list[dict]:
    _, queue = call(server, "GET", f"/api/queue?task={task}")
    for item in queue:
        body = {"key": item["key"], "answer": answer, "who": "Ada"}
        assert call(server, "POST", "/api/label", body)[0] == 200
    return queue


def test_whoever_labels_learns_neither_score_nor_origin(folder):
    with served(folder) as server:
        _, queue = call(server, "GET", "/api/queue?task=book")
        assert len(queue) == 12
        assert all(set(item) == {"key", "instruction", "answer"} for item in queue)
        assert not any("book-" in item["key"] for item in queue)
        _, found = call(server, "GET", "/api/trajectories?store=imagined&task=book&verdict=hidden")
        assert found["total"] == 12
        assert all(row["p_yes"] is None and row["verdict"] == "hidden" for row in found["rows"])
        _, detail = call(
            server, "GET", f"/api/trajectory?store=imagined&id={found['rows'][0]['id']}"
        )
        assert [detail[key] for key in ("p_yes", "mass", "reward_version")] == [None] * 3
        assert call(server, "GET", "/api/table")[1] == []
        label_all(server, "book")
        _, found = call(server, "GET", "/api/trajectories?store=imagined&task=book&verdict=hidden")
        assert found["total"] == 0


def test_labels_name_who_when_stratum_and_reward_and_a_restart_goes_on(folder):
    with served(folder) as server:
        _, queue = call(server, "GET", "/api/queue?task=wipe")
        body = {"key": queue[0]["key"], "answer": "failure", "who": "Ada L."}
        status, found = call(server, "POST", "/api/label", body)
        assert status == 200
        assert [one["labelled"] for one in found["samples"]] == [0, 1]
    (label,) = read_labels(folder / "audit" / "labels.jsonl").values()
    assert (label.answer, label.who, label.task, label.reward_version) == (
        *("failure", "Ada L.", "wipe"),
        1,
    )
    assert label.stratum in ("near", "top", "rest")
    with served(folder) as server:
        again = call(server, "GET", "/api/queue?task=wipe")[1]
        assert [item["key"] for item in again] == [item["key"] for item in queue]
        assert [item["answer"] for item in again] == ["failure"] + [""] * (len(queue) - 1)


def test_a_sample_stays_while_the_run_grows_until_it_is_drawn_anew(folder):
    with served(folder) as server:
        label_all(server, "wipe")
        before = [item["key"] for item in call(server, "GET", "/api/queue?task=wipe")[1]]
        assert len(before) == 9  # of ten, one has no score
    imagine(folder / "stores" / "imagined", "wipe", [0.3] * 30, 300, start=10)
    with served(folder) as server:
        samples = {one["task"]: one for one in call(server, "GET", "/api/overview")[1]["samples"]}
        assert samples["wipe"]["stale"]
        assert not samples["book"]["stale"]
        assert [i["key"] for i in call(server, "GET", "/api/queue?task=wipe")[1]] == before
    with served(folder, redraw=True) as server:
        samples = {one["task"]: one for one in call(server, "GET", "/api/overview")[1]["samples"]}
        assert (samples["wipe"]["population"], samples["wipe"]["stale"]) == (38, False)
        assert len(read_labels(folder / "audit" / "labels.jsonl")) == 9


def test_trajectories_can_be_found_and_traced(folder):
    with served(folder) as server:
        label_all(server, "book")
        _, seen = call(server, "GET", "/api/overview")
        assert seen["stores"] == {"imagined": 40, "real": 2}
        assert seen["tasks"] == ["book", "wipe"]
        where = "/api/trajectories?store=imagined"
        accepted = call(server, "GET", f"{where}&task=book&verdict=accepted")[1]
        assert {row["id"] for row in accepted["rows"]} == {f"book-{k}" for k in range(24, 30)}
        assert call(server, "GET", f"{where}&verdict=error")[1]["total"] == 2
        assert call(server, "GET", f"{where}&label=success")[1]["total"] == 12
        assert call(server, "GET", f"{where}&iteration=2")[1]["total"] == 0
        assert len(call(server, "GET", f"{where}&page=1")[1]["rows"]) == 40 - 24
        row = call(server, "GET", "/api/trajectory?store=imagined&id=book-25")[1]
        assert (row["parent"], row["parent_frame"], row["parent_store"], row["pair"]) == (
            *("real-book", 2, "real"),
            True,
        )
        assert (row["seed"], row["policy_version"], row["world_model_version"]) == (125, 1, 2)
        assert (row["p_yes"], row["alpha"]) == (25 / 29, 0.8)
        real = call(server, "GET", "/api/trajectory?store=real&id=real-book")[1]
        assert (real["label"], real["said_by"], real["verdict"]) == ("success", "human Cy", "none")


def test_films_are_played_in_whole_and_in_part_and_show_the_parent_beside(folder):
    av = pytest.importorskip("av")
    with served(folder) as server:
        film = call(server, "GET", "/api/film?store=imagined&id=book-25")[1]
        with av.open(io.BytesIO(film)) as container:
            frames = [one.to_ndarray(format="rgb24") for one in container.decode(video=0)]
        # 9 frames; views of 16 pixels, four times as large, real and imagined with a gap of 8
        assert (len(frames), frames[0].shape) == (9, (3 * 64, 2 * 64 + 8, 3))
        green = [int(frames[0][10, x, 1]) for x in (10, 120)]
        assert abs(green[0] - 5) < 12  # the seed of the real parent
        assert abs(green[1] - 125) < 12  # and of the imagined one
        alone = call(server, "GET", "/api/film?store=imagined&id=book-24")[1]
        with av.open(io.BytesIO(alone)) as container:
            assert next(container.decode(video=0)).width == 64
        assert call(server, "GET", "/api/film?store=real&id=real-book", Range="bytes=5-14") == (
            206,
            call(server, "GET", "/api/film?store=real&id=real-book")[1][5:15],
        )
        key = call(server, "GET", "/api/queue?task=book")[1][0]["key"]
        for wide, size in ((1, (3 * 16 * 4, 64)), (0, (64, 3 * 64))):
            blind = call(server, "GET", f"/api/blind-film?key={key}&wide={wide}")[1]
            with av.open(io.BytesIO(blind)) as container:
                shown = next(container.decode(video=0))
            assert (shown.width, shown.height) == size
        picture = call(server, "GET", "/api/picture?store=imagined&id=book-25")[1]
        assert picture[:3] == b"\xff\xd8\xff"


def test_stores_may_be_looked_at_again_while_films_are_read(folder, monkeypatch):
    monkeypatch.setattr(audit_stores, "REFRESH_S", 0.0)
    statuses: Counter[int] = Counter()
    with served(folder) as server:

        def look(first: int) -> None:
            for k in range(first, 30, 4):
                for what in ("film", "picture", "trajectory"):
                    path = f"/api/{what}?store=imagined&id=book-{k}"
                    statuses[call(server, "GET", path)[0]] += 1

        threads = [threading.Thread(target=look, args=(first,)) for first in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert statuses == {200: 90}


def test_csv_through_the_page_is_taken_whole_or_not_at_all(folder):
    with served(folder) as server:
        label_all(server, "wipe")
        _, text = call(server, "GET", "/api/labels.csv")
        rows = list(csv.DictReader(io.StringIO(text.decode())))
        assert len(rows) == 9
        good = "trajectory_id,answer,who\nbook-1,success,Ben\nbook-2,failure,Ben\n"
        bad = good + "book-3,maybe,Ben\nnobody,success,Ben\n"
        status, found = call(server, "POST", "/api/labels.csv", bad.encode())
        assert status == 400
        assert "line 4: answer 'maybe'" in found["error"]
        assert "line 5: no imagined trajectory 'nobody'" in found["error"]
        assert len(read_labels(folder / "audit" / "labels.jsonl")) == 9
        assert call(server, "POST", "/api/labels.csv", b"\xff\xfe")[0] == 400
        assert call(server, "POST", "/api/labels.csv", good.encode()) == (200, {"imported": 2})
    labels = read_labels(folder / "audit" / "labels.jsonl")
    assert (len(labels), labels["book-2"].answer, labels["book-2"].who) == (11, "failure", "Ben")


def test_half_a_request_is_not_a_file(folder):
    """A CSV whose connection breaks at the end of a line looks whole."""
    text = b"trajectory_id,answer,who\nbook-1,success,Ben\n"
    with served(folder) as server:
        port = server.server_address[1]
        head = f"POST /api/labels.csv HTTP/1.1\r\nHost: localhost:{port}\r\n"
        head += f"Origin: http://localhost:{port}\r\nContent-Length: {len(text) + 20}\r\n\r\n"
        with socket.create_connection(("127.0.0.1", port), timeout=20) as link:
            link.sendall(head.encode() + text)
            link.shutdown(socket.SHUT_WR)
            assert b"broke off" in link.recv(65536) + link.recv(65536)
        assert not server.run.labelling.labels


# --- strangers


def test_without_the_token_only_the_empty_page_is_served(folder):
    with served(folder, token="s3cret") as server:
        assert call(server, "GET", "/")[0] == 200
        body = {"key": server.run.labelling.queue("book")[0]["key"], "answer": "success"}
        body["who"] = "Eve"
        for headers in ({}, {"Authorization": "Bearer s3cre"}, {"Cookie": "vlaw_audit=s3cret"}):
            for path in ("/api/overview", "/api/labels.csv", "/api/queue?task=book"):
                assert call(server, "GET", path, **headers)[0] == 401
            assert call(server, "POST", "/api/label", body, **headers)[0] == 401
        assert call(server, "POST", "/api/login", {"token": "guess"})[0] == 401
        assert not server.run.labelling.labels
        assert call(server, "POST", "/api/label", body, Authorization="Bearer s3cret")[0] == 200


def test_a_login_is_remembered_in_a_cookie_that_scripts_cannot_read(folder):
    with served(folder, token="s3 cret;") as server:
        port = server.server_address[1]
        client = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        origin = {"Origin": f"http://127.0.0.1:{port}"}
        client.request("POST", "/api/login", json.dumps({"token": "s3 cret;"}), origin)
        cookie = client.getresponse().headers["Set-Cookie"]
        client.close()
        assert "HttpOnly" in cookie
        assert "SameSite=Strict" in cookie
        assert "cret" not in cookie
        pair = cookie.split(";")[0]
        assert call(server, "GET", "/api/overview", Cookie=pair)[0] == 200


@pytest.mark.parametrize("origin", ["", "null", "http://evil.example", "http://127.0.0.1:1"])
def test_another_page_in_the_same_browser_cannot_label(folder, origin):
    with served(folder) as server:
        body = {"key": server.run.labelling.queue("book")[0]["key"], "answer": "success"}
        assert call(server, "POST", "/api/label", body | {"who": "Eve"}, Origin=origin)[0] == 403
        assert not server.run.labelling.labels


def test_a_foreign_name_for_this_machine_is_refused(folder):
    """DNS rebinding: evil.example resolves to 127.0.0.1 and its page calls itself the origin."""
    with served(folder) as server:
        port = server.server_address[1]
        for path in ("/api/overview", "/"):
            assert call(server, "GET", path, Host=f"evil.example:{port}")[0] == 403
        assert call(server, "GET", "/api/overview", Host=f"localhost:{port}")[0] == 200


@pytest.mark.parametrize(
    "name", ["../run.json", "/etc/passwd", "..%2f..%2frun.json", "%00", "x/.."]
)
def test_no_path_comes_from_outside(folder, name):
    with served(folder) as server:
        for path in (
            f"/{name}",
            f"/api/film?store=imagined&id={name}",
            f"/api/film?store={name}&id=book-1",
            f"/api/blind-film?key={name}",
            f"/api/picture?store=real&id={name}",
            f"/api/queue?task={name}",
        ):
            status, found = call(server, "GET", path)
            assert status in (400, 404)
            assert "error" in found


WRONG = {  # each makes a good request bad in one way; "" stands for the header's absence
    "token": ["", "s3cre", "S3CRET", "s3cret0", "\xfc", "a" * 3000],
    "origin": ["", "null", "http://evil.example", "https://127.0.0.1:1", "x" * 500],
    "key": [None, 7, "", "book-1", ["a"], {"a": 1}, "\ud800", "x" * 900],
    "answer": [None, 7, "", "yes", ["success"], "\ud800", "Success"],
    "who": [None, 7, "", "=1+1", "\n", "\ud800", "x" * 65],
    "body": [b"", b"{", b"[" * 3000, b"[]", b"3", b'{"key":' * 200, b"\xff\xfe"],
    "length": ["-1", "abc", "9" * 40, "0" * 20 + "9", "", "4194305", "1e3"],
    "path": ["/api/labels", "//[", "/api/label/../x", "/api/film", "/%ff", "*", "/"],
    "method": ["PUT", "GET ", "post", "DELETE", "HEAD", "x" * 70_000],
    "noise": [None],
}  # fmt: skip


def bad_request(rng: random.Random, port: int, key: str) -> bytes:
    """A label that is wrong in one way, or random bytes."""
    how = rng.choice(list(WRONG))
    if how == "noise":
        return rng.randbytes(rng.randrange(1, 200)) + b"\r\n\r\n"
    good = {"method": "POST", "path": "/api/label", "token": "s3cret"}
    good |= {"origin": f"http://127.0.0.1:{port}", "key": key, "answer": "success", "who": "Eve"}
    facts = good | {how: rng.choice(WRONG[how])}
    label = json.dumps({name: facts[name] for name in ("key", "answer", "who")}).encode()
    body = facts.get("body", label)
    head = f"{facts['method']} {facts['path']} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
    head += f"Authorization: Bearer {facts['token']}\r\nOrigin: {facts['origin']}\r\n"
    head += f"Content-Length: {facts.get('length', len(body))}\r\nConnection: close\r\n\r\n"
    return head.encode("latin-1") + body


REFUSALS = {400, 401, 403, 404, 405, 408, 411, 413, 414, 501, 505}


@pytest.mark.long
def test_ten_thousand_requests_of_strangers_crash_nothing_and_label_nothing(folder, capfd):
    rng, statuses = random.Random(0), Counter()
    with served(folder, token="s3cret") as server:
        port = server.server_address[1]
        key = server.run.labelling.queue("book")[0]["key"]
        for _ in range(10_000):
            # It need not read a refused request to its end.
            with (
                socket.create_connection(("127.0.0.1", port), timeout=20) as link,
                suppress(ConnectionError),
            ):
                link.sendall(bad_request(rng, port, key))
                link.shutdown(socket.SHUT_WR)
                statuses[link.recv(12)[9:12]] += 1
        assert call(server, "GET", "/")[0] == 200
        assert not server.run.labelling.labels
        body = {"key": key, "answer": "success", "who": "Ada"}
        assert call(server, "POST", "/api/label", body, Authorization="Bearer s3cret")[0] == 200
    assert "Traceback" not in capfd.readouterr().err
    assert sum(statuses.values()) > 9_000
    assert {int(status) for status in statuses if status.isdigit()} <= REFUSALS


# --- back as reward data


def test_only_what_people_were_sure_of_trains_and_no_held_out_start(folder):
    book = LabelBook(folder / "audit")
    book.add([said("book-1", "success"), said("book-3", "failure"), said("book-5", "unsure")])
    book.add([said("nobody", "success"), said("book-2", "failure")])
    # The scorer failed on book-0 and a person did not: it has a verdict that is no label.
    book.add([said("book-7", "success"), said("book-7", "unsure")])
    book.close()
    labels = read_labels(folder / "audit" / "labels.jsonl")
    answers = {name: label.success for name, label in labels.items()}
    store = ReplayStore.open(folder / "stores" / "imagined")
    of_all = trainable(answers, store, holdout=1e-9)
    assert of_all == {"book-1": True, "book-2": False, "book-3": False}
    for share in (0.5, 0.999999):
        side = held_out(["real-book", "gone"], share)[1]  # parents of odd and of even numbers
        left = {"book-1": True, "book-3": False} if "real-book" not in side else {}
        left |= {"book-2": False} if "gone" not in side else {}
        assert trainable(answers, store, share) == left


def test_reward_batches_mix_real_labels_with_those_of_people(folder):
    real = ReplayStore.open(folder / "stores" / "real")
    imagined = ReplayStore.open(folder / "stores" / "imagined")
    success = {"book-28": False, "book-1": True}  # against P('yes') 0.97 and 0.03
    sources = RewardSources(
        Selection(real, ["real-book"]), Selection(imagined, list(success)), success
    )
    train = TrainConfig(batch=200)
    cfg = RewardConfig(num_frames=4, swap_share=0, clip_share=0, train=train)
    batch = RewardData(sources, cfg).sample(0)
    # The green channel is the seed: 5 of the real one, 101 and 128 of the imagined ones.
    greens = [round(float(clip.frames[..., 1].mean())) for clip in batch.clips]
    seen = {(green, bool(yes)) for green, yes in zip(greens, batch.success, strict=True)}
    assert {(min((5, 101, 128), key=lambda s: abs(s - g)), yes) for g, yes in seen} == {
        *((5, True), (101, True), (128, False)),
    }
    rows = LabelledEpisodes(sources)
    order = [(2, [0]), (0, [1, 2]), (1, [3])]
    shown = rows.frames(order)
    for (row, index), frames in zip(order, shown, strict=True):
        store = real if row == 0 else imagined
        np.testing.assert_array_equal(frames, store.frames(rows.rows[row].id, index))
    assert rows.rows[0].label == Label("real-book", True, "human", "Cy")
    assert LabelledEpisodes(RewardSources(sources.real)).rows[0].label == rows.rows[0].label


def test_a_run_without_labels_cannot_train_another_one(folder, tmp_path):
    config = RunConfig(task={"book": TaskOverrides()}, reward=RewardConfig(audited=str(folder)))
    with pytest.raises(ValueError, match=r"reward\.audited=.* is labelled success or failure"):
        check_audited(config, tmp_path / "new")
    check_audited(config, folder)  # its own folder may be audited later
    book = LabelBook(folder / "audit")
    book.add([said("book-1", "unsure")])
    with pytest.raises(ValueError, match="job=audit"):
        check_audited(config, tmp_path / "new")
    book.add([said("book-1", "failure")])
    book.close()
    check_audited(config, tmp_path / "new")


def test_training_that_is_continued_has_the_labels_that_it_began_with(folder):
    reward = RewardConfig(audited=str(folder), holdout=1e-9)
    config = RunConfig(task={"book": TaskOverrides()}, reward=reward)
    run = Context(config, folder, ["book"], *[None] * 4)
    assert audit_labels(run, 1) == {}
    book = LabelBook(folder / "audit")
    book.add([said("book-1", "success")])
    assert audit_labels(run, 1) == {}
    assert audit_labels(run, 2) == {"book-1": True}
    book.add([said("book-1", "failure")])
    book.close()
    assert audit_labels(run, 2) == {"book-1": True}
    assert audit_labels(run, 3) == {"book-1": False}
    assert audit_labels(replace(run, config=replace(config, reward=RewardConfig())), 3) == {}


# --- the job


def test_the_page_files_are_there_and_need_no_other_server():
    for file in STATIC.values():
        text = file.read_text(encoding="utf-8")
        assert file.parent == ROOT / "services"
        assert "http://" not in text
        assert "https://" not in text


@pytest.mark.parametrize(
    ("settings", "flag"),
    [({"host": ""}, "host"), ({"port": -2}, "port"), ({"n": 5}, "n=5"), ({"seed": -1}, "seed")],
)
def test_bad_settings_are_named(settings, flag):
    with pytest.raises(ValueError, match=f"audit.{flag}"):
        AuditConfig(**settings)


def test_folders_that_are_no_run_are_refused(tmp_path, folder):
    config = RunConfig(job="audit", task={"book": TaskOverrides()})
    with pytest.raises(ValueError, match="holds no run"):
        audit(config, tmp_path / "nothing")
    shutil.rmtree(folder / "stores" / "imagined")
    with pytest.raises(ValueError, match="no imagined trajectories"):
        audit(config, folder)


def test_the_job_prints_its_address_serves_and_ends_when_told(folder, tmp_path):
    key = tmp_path / "key"
    key.write_text("s3cret\n")
    command = [sys.executable, "ray_job.py", "job=audit", f"out={folder}", "audit.port=0"]
    command += ["audit.n=12", f"audit.key_file={key}"]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        line = process.stdout.readline()
        assert str(folder) in line
        address, _, token = line.split()[-1].partition("#token=")
        assert token == "s3cret"
        client = http.client.HTTPConnection(address.removeprefix("http://").strip("/"), timeout=20)
        client.request("GET", "/api/overview", headers={"Authorization": f"Bearer {token}"})
        assert json.loads(client.getresponse().read())["stores"]["imagined"] == 40
        client.close()
        process.send_signal(signal.SIGTERM)
        assert "stopped" in process.communicate(timeout=30)[0]
    finally:
        process.kill()
        process.wait()


# --- the browser


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    with Chromium(tmp_path_factory.mktemp("profile"), 1280, 900) as browser:
        yield browser


def answers(folder: Path) -> list[str]:
    return [label.answer for label in read_labels(folder / "audit" / "labels.jsonl").values()]


@pytest.mark.browser
def test_a_person_labels_with_keys_and_clicks_and_reads_table_3(chromium, folder, tmp_path):
    with served(folder, token="s3cret") as server:
        chromium.resize(1280, 900)
        chromium.open(f"{server.uri}")
        chromium.until("document.querySelectorAll('.dots button').length == 12")
        assert "s3cret" not in chromium.run("location.href")
        assert chromium.run("document.body.innerText.match(/P\\(|book-|0\\.\\d/)") is None
        chromium.press("y")  # nobody has said who they are
        assert answers(folder) == []
        chromium.click("#who")
        chromium.type("Ada")
        chromium.press("y")  # that is a letter of the name
        assert answers(folder) == []
        chromium.press("Enter")
        chromium.until("document.querySelector('#film').ended")
        chromium.press(" ")
        chromium.until("!document.querySelector('#film').ended")
        place = chromium.run("document.querySelector('#failure').getBoundingClientRect().y")
        chromium.press("y", repeats=5)  # a key that is held is one answer
        chromium.until("document.querySelectorAll('.dots .success').length == 1")
        # while the next film loads, too, the buttons are where they were
        assert chromium.run("document.querySelector('#failure').getBoundingClientRect().y") == place
        chromium.click("#failure")
        chromium.until("document.querySelectorAll('.dots .failure').length == 1")
        chromium.press(" ")  # replays; it must not press the button that was clicked
        chromium.press("u")
        chromium.until("document.querySelectorAll('.dots .unsure').length == 1")
        assert answers(folder) == ["success", "failure", "unsure"]
        chromium.picture(tmp_path / "label.png")
        chromium.press("ArrowLeft")
        chromium.press("n")  # a second look
        chromium.until("document.querySelectorAll('.dots .failure').length == 2")
        chromium.until("document.querySelector('.dots [aria-current]').textContent == '4'")
        for done in range(4, 13):
            chromium.press("y")
            chromium.until(f"document.querySelectorAll('.dots .success').length == {done - 2}")
        assert Counter(answers(folder)) == {"success": 10, "failure": 2}
        chromium.click("#end a")
        chromium.until("document.querySelectorAll('table').length == 2")
        assert "12 of 29" in chromium.run("document.querySelector('table').innerText")
        chromium.picture(tmp_path / "table.png")
    assert not chromium.complaints


@pytest.mark.browser
def test_trajectories_are_browsed_on_a_phone(chromium, folder, tmp_path):
    with served(folder) as server:
        chromium.resize(390, 844)
        chromium.open(f"{server.uri}#browse")
        chromium.until("document.querySelectorAll('.card').length == 24")
        wide = "document.documentElement.scrollWidth > innerWidth"
        assert not chromium.run(wide)
        chromium.picture(tmp_path / "browse.png")
        chromium.run(
            "(() => { const s = document.querySelector('[name=store]'); s.value = 'real';"
            " s.dispatchEvent(new Event('change')); })()"
        )
        chromium.until("document.querySelectorAll('.card').length == 2")
        chromium.open(f"{server.uri}#trajectory/imagined/book-25")
        chromium.until("document.querySelector('video')?.readyState >= 2")
        assert not chromium.run(wide)
        chromium.picture(tmp_path / "trajectory.png")
        chromium.click("td a")
        chromium.until("document.querySelector('h2')?.textContent == 'real-book'")
        chromium.open(f"{server.uri}#label")
        chromium.until("document.querySelector('#film')?.readyState >= 2")
        assert not chromium.run(wide)
        chromium.picture(tmp_path / "phone.png")
    assert not chromium.complaints


@pytest.mark.browser
def test_a_server_that_is_gone_costs_no_label_silently(chromium, folder):
    with served(folder) as server:
        chromium.resize(1280, 900)
        chromium.open(server.uri)
        chromium.until("document.querySelectorAll('.dots button').length == 12")
        chromium.run("document.querySelector('#who').select()")
        chromium.type("Ada")
        chromium.press("Enter")
    chromium.press("y")
    chromium.until("document.querySelector('#trouble').innerText.startsWith('Not stored')")
    assert chromium.run("document.querySelectorAll('.dots .success').length") == 0
    chromium.complaints.clear()  # the browser says that nobody answers
    assert answers(folder) == []
