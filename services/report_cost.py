"""The report's section on cost: what was expected when the run began, and what it took."""

from services.report_data import Amount, ReportData, StageCost
from services.report_html import DASH, absent, duration, paragraph, section, table, text

TITLE = "Cost"


def cost(data: ReportData) -> str:
    """Hours, GPU-hours and disk of every stage, expected and spent, and their ratio."""
    if not data.costs:
        return section("cost", TITLE, absent("Not measured: no stage has ended."))
    rows = [_cells(row.stage, row.expected, row.spent) for row in data.costs]
    both = [row for row in data.costs if row.expected and row.spent]
    rows.append(_cells("stages with both", _sum(both, "expected"), _sum(both, "spent")))
    headers = (
        *("stage", "time expected", "time spent", "spent / expected"),
        *("GPU-hours expected", "spent", "disk expected [MiB]", "grown"),
    )
    words = (
        "Expected: stored when the run began (estimate.json). Disk: by how much the run's folder "
        "grew, checkpoints included; expected are trajectories alone."
    )
    marked = [False] * (len(rows) - 1) + [True]
    return section("cost", TITLE, paragraph(words), table(headers, rows, marked))


def _sum(rows: list[StageCost], which: str) -> Amount:
    found = [row.expected if which == "expected" else row.spent for row in rows]
    known = [one for one in found if one is not None]
    return Amount(
        sum(one.seconds for one in known),
        sum(one.gpu_seconds for one in known),
        sum(one.disk_bytes for one in known),
    )


def _cells(stage: str, expected: Amount | None, spent: Amount | None) -> list[str]:
    ratio = DASH
    if expected and spent and expected.seconds:
        ratio = f"{spent.seconds / expected.seconds:.2f}"
    return [
        text(stage),
        duration(expected.seconds) if expected else DASH,
        duration(spent.seconds) if spent else DASH,
        ratio,
        *(f"{one.gpu_seconds / 3600:.2f}" if one else DASH for one in (expected, spent)),
        *(f"{one.disk_bytes / 2**20:.1f}" if one else DASH for one in (expected, spent)),
    ]
