"""Failures that one part must be able to tell from another part's mistakes."""


class PolicyUnavailableError(ConnectionError):
    """Whoever decides for the arm did not: it is unreachable, silent, refuses, or answers nonsense.

    A rollout that meets it holds the arm and ends as aborted; nothing about the task is learned.
    """
