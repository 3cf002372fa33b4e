"""The page of a run that goes on."""

import math
import re

import pytest

from services.replay import StoreCounts
from services.report import page, sections, write_live, write_report
from services.report_data import ReportData
from services.report_live import RELOAD_S, Now, Work, running

DATA = ReportData("VLAW run x", "today", {})
WORK = Work("1 imagine", 24, 96, "trajectories", 0.5, 48.0, {"loss": 0.25})
NOW = Now(
    "2026-11-25 23:07:55 UTC",
    "1 imagine",
    [WORK],
    {"book": {"workers": 2, "accepted": 7, "per_hour": 1800.0}, "<draw>": {"workers": 1}},
    {"policy": 1, "world_model": 2},
    {"real": StoreCounts(8, 8, 3, 3 * 2**20)},
    [("1 collect", 75.0)],
)


def test_numbers_of_the_moment_by_hand():
    assert WORK.eta_s == (96 - 24) / 0.5
    assert math.isnan(Work("x", 0, 10, "steps", 0, 5.0).eta_s)
    html = running(NOW)
    assert "2 min 24 s" in html  # 144 s left
    assert f"{24} of 96" in html
    assert "1\u202f800 / h" in html
    assert "flex:0 0 25.0%" in html
    assert "policy v1, world model v2" in html
    assert "<td>real</td><td>8</td><td>8</td><td>3</td><td>3.0</td>" in html
    assert "1 min 15 s" in html


def test_a_task_has_a_row_and_lacks_what_it_does_not_count():
    html = running(NOW)
    heads = re.search(r"<h3>Tasks</h3>.*?</thead>", html).group(0)
    assert re.findall(r'<th scope="col">([^<]*)', heads) == [
        "task", "workers", "accepted", "per hour",
    ]  # fmt: skip
    assert "<tr><td>book</td><td>2</td><td>7</td><td>1\u202f800</td></tr>" in html
    assert "<tr><td>&lt;draw&gt;</td><td>1</td><td>\u2013</td><td>\u2013</td></tr>" in html


@pytest.mark.parametrize("stopped", ["", "the arm does not answer."])
def test_the_page_loads_itself_again_until_the_run_ends(tmp_path, stopped):
    path = write_live(
        DATA.title,
        sections(DATA),
        Now("now", "", stopped=stopped, stores=NOW.stores),
        tmp_path,
    )
    html = path.read_text(encoding="utf-8")
    again = f'<meta http-equiv="refresh" content="{RELOAD_S}">'
    assert html.count(again) == (0 if stopped else 1)
    assert ("Stopped: the arm does not answer. The same command" in html) == bool(stopped)
    assert '<a href="#now">' in html
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
    final = write_report(DATA, tmp_path)
    assert "refresh" not in final.read_text(encoding="utf-8")
    assert final.read_text(encoding="utf-8") == page(DATA)
