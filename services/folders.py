"""How much a folder holds."""

from pathlib import Path


def bytes_below(folder: Path) -> int:
    """Bytes of all files below a folder; what vanishes while this looks does not count."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:
            continue
    return total
