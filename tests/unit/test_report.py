"""The report page and its JSON, on a run with every awkward case in it."""

import base64
import io
import json
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser

import av
import numpy as np
import pytest
from PIL import Image

from contracts.statistics import Agreement, auc_interval
from services.report import MEDIA_BYTES, page, write_report
from services.report_charts import Series, histogram, intervals, line_chart, shares, thinned, ticks
from services.report_data import (
    Calibration,
    Evaluation,
    Film,
    Imagined,
    LossCurve,
    Refusal,
    ReplayQuality,
    ReportData,
    Scores,
    Sheet,
    StageTime,
    Throughput,
    Truth,
    Unavailable,
    Version,
)
from services.report_html import duration, number, percent
from services.report_media import Budget, mp4, picture_of
from services.report_numbers import comparisons, pooled

ATTACK = "stack <script>alert(\"x\")</script> & 'go'"


def drawn(count, seed, size=(48, 80)):
    """A square that drifts over a gradient, three views of it."""
    height, width = size
    rng = np.random.default_rng(seed)
    shade = np.linspace(60, 160, width, dtype=np.uint8)[None, None, None, :, None]
    frames = np.broadcast_to(shade, (count, 3, height, width, 3)).copy()
    for j in range(count):
        left = 4 + (width - 24) * j // max(count - 1, 1)
        frames[j, :, 14:30, left : left + 16] = rng.integers(80, 255, 3, dtype=np.uint8)
    return frames


def success_rows():
    seeds = "1000000..1000019"
    return [
        Evaluation("base", "stack", 0, 20, seeds),
        Evaluation("vlaw-1", "stack", 5, 20, seeds),
        Evaluation("control", "stack", 4, 20, seeds, control=True),
        Evaluation("base", "book", 11, 20, seeds),
        Evaluation("vlaw-1", "book", 20, 20, seeds),
        Evaluation("vlaw-2", "book", None, 0),
        Evaluation("control", "book", 10, 20, seeds, control=True),
    ]


def score_rows():
    rng = np.random.default_rng(0)
    return [
        Scores(1, "book", 0.8, rng.beta(6, 2, 24), rng.beta(1, 6, 16), rng.beta(2, 2, 120)),
        Scores(
            1, "stack", 0.8, np.array([]), rng.beta(1, 8, 40), np.append(rng.beta(1, 9, 59), np.nan)
        ),
    ]


def losses():
    steps = np.arange(1.0, 151.0)
    falling = 0.9 * np.exp(-steps / 40) + 0.08 + 0.01 * np.sin(steps)
    broken = np.where(steps >= 138, np.nan, 2 * falling)
    return [
        LossCurve("policy", "iteration 1", steps, falling),
        LossCurve("policy", "control", steps, falling + 0.03),
        LossCurve("world_model", "iteration 1", steps, broken),
        LossCurve("reward", "iteration 1", steps[:5], np.full(5, np.nan)),
    ]


def replays():
    seconds = np.array([0.8, 1.6, 2.4, 3.2, 4.0])
    copy_psnr, copy_ssim = 24 - 2.2 * seconds, 0.9 - 0.06 * seconds
    return [
        ReplayQuality(
            "v0 (base)", 8, seconds, 26 - 2 * seconds, 0.91 - 0.05 * seconds, copy_psnr, copy_ssim
        ),
        ReplayQuality(
            "v1", 8, seconds, 28 - 1.7 * seconds, 0.93 - 0.04 * seconds, copy_psnr, copy_ssim
        ),
    ]


def example():
    """A quick run: no imagined success on one task, a stage not evaluated, broken losses."""
    calibration = Calibration(
        "v1",
        0.8,
        np.array([0.9, 0.8, 0.3, 0.95, 0.1]),
        np.array([1, 1, 1, 0, 0], bool),
        "simulator",
        np.array([0.95, 0.85, 1.0, 0.95, 0.9]),
        ("book", "book", "stack", "book", "stack"),
        {"book": 0.8, "stack": 0.8},
        0.9,
        iteration=1,
    )
    weights = "weights not found: i3d_torchscript.pt; looked in ~/.cache/vlaw"
    return ReportData(
        title="vlaw quick run",
        created="2025-11-22 20:10, seed 0",
        config={
            "seed": 0,
            "task": {"book": {}, "stack": {}},
            "method": {"kind": "vlaw", "iterations": 2},
        },
        evaluations=success_rows(),
        imagined=[
            Imagined(1, "book", 120, 41, 77, 2, 24, 40, Agreement(0.75, 24, 16)),
            Imagined(1, "stack", 60, 0, 55, 0, 0, 40),
        ],
        truths=[Truth(1, "book", 41, 30, 77, 10), Truth(1, "stack", 0, 0)],
        refusals=[Refusal(1, "policy update", "stack", "D_syn+ holds 0 of at least 1 successes")],
        scores=score_rows(),
        losses=losses(),
        replays=replays(),
        calibrations=[calibration],
        sheets=[
            Sheet("Accepted, near alpha", ("book 0.81", ATTACK), drawn(8, 3)[:, :2].swapaxes(0, 1))
        ],
        films=[
            Film("imagined-1-book-00003", "open the book", drawn(21, 1), drawn(26, 2), 0.87),
            Film("imagined-1-stack-00001", ATTACK, drawn(9, 4)),
        ],
        throughput=[Throughput(1, 4, 14_400, 180, 1200.0)],
        stages=[StageTime("1 collect", 95.5), StageTime("1 imagine", 1200.0)],
        lineage=[
            Version("policy", 0, "ab" * 32, "", 4000, {"demonstrations": 50}),
            Version(
                "policy", 1, "cd" * 32, "policy v0", 100, {"real successes": 24, "imagined": 41}
            ),
        ],
        unavailable=[Unavailable(name, weights) for name in ("LPIPS", "FID", "FVD")],
        notes=["Iteration 2 was not run.", "Labels come from the simulator."],
    )


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return write_report(example(), tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def html(written):
    return written.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def numbers(written):
    return json.loads(written.with_name("report.json").read_text())


def test_every_given_number_comes_back(numbers):
    data = example()
    assert [row["successes"] for row in numbers["evaluations"]] == [0, 5, 4, 11, 20, None, 10]
    for row, found in zip(data.scores, numbers["scores"], strict=True):
        for name in ("real_success", "real_failure", "imagined"):
            back = np.array(found[name], float)
            np.testing.assert_array_equal(back, getattr(row, name))
    for row, found in zip(data.losses, numbers["losses"], strict=True):
        np.testing.assert_array_equal(np.array(found["losses"], float), row.losses)
    for row, found in zip(data.replays, numbers["replays"], strict=True):
        for name in ("seconds", "psnr", "ssim", "copy_psnr", "copy_ssim"):
            assert found[name] == getattr(row, name).tolist()
    assert numbers["lineage"][1]["data"] == {"real successes": 24, "imagined": 41}
    assert numbers["stages"] == [
        {"stage": "1 collect", "seconds": 95.5},
        {"stage": "1 imagine", "seconds": 1200.0},
    ]
    assert numbers["films"][0]["imagined"] == {"shape": [21, 3, 48, 80, 3]}
    assert numbers["films"][1] | {"imagined": 0} == {
        "caption": "imagined-1-stack-00001",
        "instruction": ATTACK,
        "imagined": 0,
        "real": None,
        "p_yes": None,
        "fps": 5,
    }


def test_derived_numbers_by_hand(numbers):
    base = numbers["evaluations"][0]
    assert base["rate"] == 0
    assert round(base["interval"]["high"], 4) == 0.1611  # 0 of 20, Newcombe 1998
    assert numbers["imagined"][0]["accepted_share"] == 41 / 118
    assert [row["missing"] for row in numbers["imagined"]] == [0, 5]
    assert numbers["imagined"][0]["agreement"] == {"area": 0.75, "successes": 24, "failures": 16}
    assert numbers["imagined"][1]["agreement"] is None
    book, stack = numbers["truths"]
    assert (book["purity"], book["recall"], book["base_rate"]) == (30 / 41, 30 / 40, 40 / 118)
    assert (stack["purity"], stack["recall"], stack["base_rate"]) == (None, None, None)
    assert numbers["throughput"][0]["frames_per_second"] == 12
    assert numbers["throughput"][0]["trajectories_per_hour"] == 540
    calibration = numbers["calibrations"][0]
    assert calibration["auc"] == 0.5
    counts = {
        k: v for k, v in calibration["at_alpha"].items() if "_positive" in k or "_negative" in k
    }
    assert [counts[f"{a}_{b}"] for a in ("true", "false") for b in ("positive", "negative")] == [
        1,
        1,
        1,
        2,
    ]


def test_json_is_strict(written):
    content = written.with_name("report.json").read_text()
    assert "NaN" not in content
    assert "Infinity" not in content


def test_pooling_never_compares_on_fewer_tasks():
    easy = Evaluation("vlaw-3", "book", 20, 20)  # not evaluated on the harder task
    rows = {row.stage: row for row in pooled([*success_rows(), easy])}
    assert list(rows) == ["base", "vlaw-1", "vlaw-2", "vlaw-3", "control"]  # the control is last
    assert (rows["vlaw-3"].successes, rows["vlaw-3"].n) == (None, 0)
    assert (rows["base"].successes, rows["base"].n) == (11, 40)
    assert (rows["vlaw-1"].successes, rows["vlaw-1"].n) == (25, 40)
    assert rows["vlaw-2"].successes is None
    assert (rows["control"].successes, rows["control"].n) == (14, 40)


def test_the_newest_policy_is_compared_with_base_and_control():
    base, control = comparisons(success_rows())
    assert (base.before, base.after, base.change) == ("base", "vlaw-1", 14 / 40)
    assert base.conclusion == "higher, beyond chance at 95 %"
    assert (control.before, control.change) == ("control", pytest.approx(11 / 40))
    few = [Evaluation("base", "book", 4, 10), Evaluation("vlaw-1", "book", 6, 10)]
    assert comparisons(few)[0].conclusion == "not distinguishable from no change"
    worse = [Evaluation("base", "book", 19, 20), Evaluation("vlaw-1", "book", 2, 20)]
    assert comparisons(worse)[0].conclusion == "lower, beyond chance at 95 %"
    assert comparisons(few[:1]) == []


def test_equal_data_give_equal_files(written, tmp_path):
    again = write_report(example(), tmp_path)
    assert again.read_bytes() == written.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["report.html", "report.json"]


class Addresses(HTMLParser):
    """Collects every address that a browser would follow or load, and checks the nesting."""

    VOID = frozenset({"meta", "img", "br"})
    SVG = frozenset({"line", "circle", "polyline"})

    def __init__(self):
        super().__init__()
        self.found, self.open, self.ids = [], [], []

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.found += [
            values[k] for k in ("src", "href", "srcset", "poster", "action") if k in values
        ]
        self.ids += [values["id"]] if "id" in values else []
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        assert tag in self.SVG

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_well_formed_and_needs_no_network(html):
    parser = Addresses()
    parser.feed(html)
    assert parser.open == []
    assert parser.found
    links = {a for a in parser.found if a.startswith("#")}
    assert {a[1:] for a in links} == set(parser.ids)
    assert all(a.startswith(("#", "data:image/png;", "data:video/mp4;")) for a in parser.found)
    outside = re.sub(r"data:[a-z0-9/]+;base64,[A-Za-z0-9+/=]+", "", html)
    assert not re.search(r"https?:|//[a-z]|@import|url\(", outside.split("<script>")[0])
    assert "fetch(" not in outside


def test_texts_are_escaped(html):
    assert "<script>alert" not in html
    assert (
        html.count("stack &lt;script&gt;alert(&quot;x&quot;)&lt;/script&gt; &amp; &#x27;go&#x27;")
        == 3
    )


def test_awkward_cases_are_said_in_words(html):
    for words in (
        "not evaluated",
        "No imagined success to learn from (D_syn+ is empty): stack, iteration 1.",
        "D_syn+ holds 0 of at least 1 successes",
        "13, first at step 138",
        "No finite loss to draw.",
        "real, success: none",
        "unavailable: weights not found: i3d_torchscript.pt; looked in ~/.cache/vlaw",
        "promise no improvement",
        "same steps, demonstrations only",
        "0.0 % to 16.1 %",
        "1000000..1000019",
        "41 of 173 scored",
        "Iteration 2 was not run.",
    ):
        assert words in html, words


def test_an_empty_run_says_what_is_missing():
    html = page(ReportData("empty", "never", {}))
    parser = Addresses()
    parser.feed(html)
    assert parser.open == []
    for words in (
        "no policy was evaluated",
        "nothing was imagined",
        "no learner trained",
        "No films",
    ):
        assert words in html


def test_a_missing_control_is_pointed_out():
    data = ReportData("r", "", {}, evaluations=[r for r in success_rows() if not r.control])
    assert "same-steps control was not evaluated" in page(data)


def films_of(html):
    found = re.findall(r"data:video/mp4;base64,([A-Za-z0-9+/=]+)", html)
    for content in found:
        with av.open(io.BytesIO(base64.b64decode(content)), "r") as container:
            stream = container.streams.video[0]
            frames = [f.to_ndarray(format="rgb24") for f in container.decode(stream)]
            codec = stream.codec_context
            yield (codec.name, codec.pix_fmt, stream.average_rate), frames


def test_films_play_every_frame(html):
    (both, pair), (_, alone) = films_of(html)
    assert both == ("h264", "yuv420p", 5)
    assert [len(pair), len(alone)] == [26, 9]  # the longer of 26 real and 21 imagined
    # 48x80 views enlarged four times: three above each other, 8 pixels between both sides
    assert pair[0].shape == (3 * 48 * 4, 2 * 80 * 4 + 8, 3)
    assert alone[0].shape == (576, 320, 3)
    expected = picture_of(example().films[0])
    error = np.mean([np.abs(a.astype(int) - b).mean() for a, b in zip(pair, expected, strict=True)])
    assert error < 6  # lossy, but the same pictures in the same order


def test_a_film_shows_real_left_and_imagined_right_and_holds_the_end():
    real = np.full((2, 1, 16, 16, 3), 10, np.uint8)
    imagined = np.stack([np.full((1, 16, 16, 3), 100 + j, np.uint8) for j in range(3)])
    shown = picture_of(Film("f", "i", imagined, real))
    assert shown.shape == (3, 64, 136, 3)
    assert shown[:, 0, 0, 0].tolist() == [10, 10, 10]
    assert shown[:, 63, 135, 0].tolist() == [100, 101, 102]
    assert shown[0, 0, 64:72, 0].tolist() == [128] * 8


def test_odd_sides_are_padded_to_even():
    film = Film("f", "i", np.full((2, 1, 333, 321, 3), 77, np.uint8))
    shown = picture_of(film)
    assert shown.shape == (2, 334, 322, 3)
    assert (shown == 77).all()


def test_films_that_do_not_fit_are_refused():
    real = np.zeros((2, 3, 16, 16, 3), np.uint8)
    with pytest.raises(ValueError, match="no frames"):
        picture_of(Film("f", "i", real[:0]))
    with pytest.raises(ValueError, match="differ in size"):
        picture_of(Film("f", "i", real[:, :, :8], real))


def test_the_page_stays_within_its_budget():
    noise = np.random.default_rng(0).integers(0, 256, (6, 3, 48, 80, 3), dtype=np.uint8)
    data = ReportData("big", "", {}, films=[Film(f"film {k}", "i", noise) for k in range(3)])
    (size,) = {len(uri) for uri in re.findall(r'"(data:video[^"]+)"', page(data))}
    whole, cut = page(data, media_bytes=3 * size), page(data, media_bytes=3 * size - 1)
    assert [whole.count("<video"), cut.count("<video")] == [3, 2]
    assert "are left out" not in whole
    assert "1 films or rows of pictures are left out: the page is full" in cut
    assert MEDIA_BYTES + 1_000_000 <= 8_000_000


def test_the_budget_counts_base64():
    budget = Budget(60)
    address = budget.uri("image/png", b"12345678")
    assert base64.b64decode(address.split(",")[1]) == b"12345678"
    assert budget.left == 60 - len("data:image/png;base64,") - 12
    assert budget.uri("image/png", b"12345678") == ""
    assert budget.refused == 1


def test_sheets_are_lossless(html):
    first = re.search(r"data:image/png;base64,([A-Za-z0-9+/=]+)", html)
    assert first
    picture = np.array(Image.open(io.BytesIO(base64.b64decode(first[1]))))
    frames = example().sheets[0].frames[0]
    assert picture.shape == (48, 8 * 82 - 2, 3)
    np.testing.assert_array_equal(picture[:, 82 * 5 : 82 * 5 + 80], frames[5])


def test_mp4_is_a_function_of_its_frames():
    frames = picture_of(example().films[1])
    assert mp4(frames, 5) == mp4(frames, 5)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 1.0, [0, 0.5, 1.0]),
        (0.0, 4.0, [0, 1, 2, 3, 4]),
        (17.1, 28.3, [20, 25]),
        (-1.0, 1.0, [-1, -0.5, 0, 0.5, 1]),
    ],
)
def test_ticks_are_round(low, high, expected):
    assert ticks(low, high) == pytest.approx(expected)


def test_lines_break_where_a_value_is_not_finite():
    nan = math.nan
    chart = line_chart(
        [Series("a", 0, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [1.0, 2.0, nan, 3.0, 4.0, nan])], "x", "y"
    )
    assert chart.count("<polyline") == 2
    assert "nan" not in chart
    assert line_chart([Series("a", 0, [1.0, 2.0], [nan, nan])], "x", "y") == ""
    assert line_chart([Series("a", 0, [1.0, 2.0], [-1.0, 0.0])], "x", "y", log=True) == ""


def test_a_line_rises_when_its_values_do():
    (points,) = re.findall(
        r'points="([^"]+)"', line_chart([Series("a", 0, [0.0, 1.0], [5.0, 9.0])], "x", "y")
    )
    (x0, y0), (x1, y1) = (map(float, p.split(",")) for p in points.split())
    assert x1 > x0
    assert y1 < y0  # SVG counts downwards


def test_long_lines_are_thinned_by_means():
    x, y = thinned([float(k) for k in range(600)], [float(k) for k in range(600)])
    assert (len(x), x[0], y[0], y[-1]) == (300, 0.5, 0.5, 598.5)
    _, y = thinned([float(k) for k in range(600)], [1.0, math.nan] * 300)
    assert set(y) == {1.0}


def test_histograms_count_every_score():
    scores = Scores(
        1, "book", 0.8, np.array([0.0, 0.01, 0.06, 1.0]), np.array([]), np.array([0.8, np.nan])
    )
    chart = histogram(scores)
    assert re.findall(r"<title>([^<]+)</title>", chart) == [
        *("0.00 to 0.05: 2", "0.05 to 0.10: 1", "0.95 to 1.00: 1", "0.80 to 0.85: 1")
    ]
    heights = [float(h) for h in re.findall(r'<rect[^>]+height="([0-9.]+)"', chart)]
    assert heights[0] == 2 * heights[1] == 2 * heights[2] == heights[3]
    assert "real, success: n = 4, 25.0 % above alpha" in chart
    assert "imagined: n = 1, 0.0 % above alpha" in chart  # 0.8 > 0.8 is false, NaN is no score


def test_whiskers_span_the_interval():
    chart = intervals([Evaluation("base", "book", 0, 20), Evaluation("x", "book", 10, 20)])
    (whisker, *_) = re.findall(r'<line x1="([0-9.]+)"[^>]+x2="([0-9.]+)"[^>]+whisker', chart)
    rules = [float(x) for x in re.findall(r'<line x1="([0-9.]+)"[^>]+class="rule"', chart)]
    dots = [float(x) for x in re.findall(r'<circle cx="([0-9.]+)"', chart)]
    zero, whole = rules[0], rules[-1] - rules[0]
    assert dots == pytest.approx([zero, zero + whole / 2], abs=0.1)
    assert [float(x) for x in whisker] == pytest.approx([zero, zero + 0.1611 * whole], abs=0.1)


def test_share_bars_have_one_cell_per_count():
    bar = shares([("accepted", 0, 3), ("rejected", 1, 0), ("errors", 2, 9)])
    assert re.findall(r'class="b(\d)" style="flex:(\d+)"', bar) == [("0", "3"), ("2", "9")]
    assert shares([("accepted", 0, 0)]) == ""


def test_numbers_are_short():
    assert [number(v) for v in (0.0, 12.0, 14400.0, 0.12345, math.nan)] == [
        *("0", "12", "14\u202f400", "0.123", "\u2013")
    ]
    assert [percent(v) for v in (0.0, 0.0041, 1.0, math.nan)] == [
        "0.0 %",
        "0.4 %",
        "100.0 %",
        "\u2013",
    ]
    assert [duration(v) for v in (4.25, 95.5, 4210.0)] == ["4.2 s", "1 min 36 s", "1 h 10 min"]


def test_impossible_counts_are_refused():
    with pytest.raises(ValueError, match="21 successes of 20"):
        Evaluation("base", "book", 21, 20)
    with pytest.raises(ValueError, match="1 labels for 2 rows"):
        Sheet("s", ("a",), np.zeros((2, 1, 8, 8, 3), np.uint8))


@pytest.mark.browser
def test_chromium_renders_the_page(written, tmp_path):
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    assert browser, "install it: apt-get install -y chromium"
    command = [
        *(browser, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=4000"),
        *(f"--user-data-dir={tmp_path}", "--dump-dom", written.as_uri()),
    ]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    assert dom.count("<video") == 2
    # success: 2 tasks and all; 2 histograms; ROC; PSNR and SSIM; 2 of 3 learners have finite losses
    assert dom.count("<svg") == 3 + 2 + 1 + 2 + 2
    assert "<h1>vlaw quick run</h1>" in dom
    assert "alert(" in dom
    assert "<script>alert" not in dom


def test_the_page_says_whether_imagination_tells_starts_apart(html):
    between = auc_interval(0.75, 24, 16)
    cell = f"0.75 <small>{between.low:.2f} to {between.high:.2f}, 40 starts</small>"
    assert f"<td>{cell}</td>" in html
