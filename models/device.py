"""Where a model is while it acts, imagines or judges; learners choose for themselves."""

from typing import TypeVar

import torch

from models.interfaces import Trainable

M = TypeVar("M")


def on_gpu(model: M) -> M:
    """Move the model to the process's GPU, where Ray gave it one, and return it.

    A model without weights of its own (``policy=remote``) stays as it is.
    """
    if isinstance(model, Trainable):
        model.module().to("cuda" if torch.cuda.is_available() else "cpu").eval()
    return model
