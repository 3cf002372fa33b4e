"""The few checks that every config file uses; their messages name the flag to change."""

import difflib
import math
from collections.abc import Iterable
from ipaddress import ip_address


def one_of(flag: str, value: str, allowed: Iterable[str]) -> None:
    """Raise ValueError unless ``value`` is allowed; suggest the nearest allowed one."""
    names = sorted(allowed)
    if value in names:
        return
    near = difflib.get_close_matches(value, names, n=1)
    hint = f" Did you mean {flag}={near[0]}?" if near else ""
    raise ValueError(f"{flag}={value!r} is not one of {', '.join(names)}.{hint}")


def has_base(flag: str, kind: str, checkpoint: str) -> None:
    """Only the embedded models have weights that are committed with the code."""
    if checkpoint == "base" and kind != "embedded":
        raise ValueError(
            f"{flag}.checkpoint=base is an embedded model, not {kind}: give "
            f"{flag}.checkpoint=<folder>, or {flag}.checkpoint=scratch for fresh weights"
        )
    if not checkpoint:
        raise ValueError(f"{flag}.checkpoint is not set: give {flag}.checkpoint=<folder>")


def at_least(flag: str, value: float, low: float) -> None:
    if not value >= low:
        raise ValueError(f"{flag}={value} must be at least {low:g}")


def inside(flag: str, value: float, low: float, high: float) -> None:
    """Raise ValueError unless low < value < high."""
    if not low < value < high or math.isnan(value):
        raise ValueError(f"{flag}={value} must lie inside ({low:g}, {high:g})")


def share(flag: str, value: float) -> None:
    """Raise ValueError unless 0 <= value <= 1."""
    if not 0 <= value <= 1:
        raise ValueError(f"{flag}={value} must lie in [0, 1]")


def worker_count(flag: str, value: object) -> None:
    """Raise ValueError unless ``value`` is a positive whole number or ``auto``."""
    number = isinstance(value, int) and not isinstance(value, bool) and value >= 1
    if value != "auto" and not number:
        raise ValueError(f"{flag}={value} must be a number of at least 1, or auto")


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens there; ``[::1]`` may have its brackets."""
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
