"""Where a learner writes its steps; a module of its own, so that its process starts at once."""


class StepBoard:
    """Where a learner writes its steps, for the bar. One that died comes back empty."""

    def __init__(self) -> None:
        self._losses: dict[int, float] = {}  # by step; what nobody has asked for yet
        self._refusal = ""

    def refuse(self, reason: str) -> None:
        """The learner cannot train on what it was given: another attempt would end the same."""
        self._refusal = reason

    def post(self, step: int, loss: float) -> None:
        """All learners of a run post the same loss: it is a mean over them."""
        self._losses[step] = loss

    def news(self) -> tuple[dict[int, float], str]:
        """Losses by step since the last time this was asked, and why the learner refuses to train
        ("": it does not)."""
        losses, self._losses = self._losses, {}
        return losses, self._refusal
