"""MuJoCo's classes live in compiled modules that carry no types; every name is Any."""

from typing import Any

def __getattr__(name: str) -> Any: ...
