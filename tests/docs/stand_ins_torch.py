"""A user's own objects, for snippets with PyTorch."""

from __future__ import annotations

from typing import Any

import horovod.torch as hvd
import torch

hvd.init(process_sets="dynamic")


def objects() -> dict[str, Any]:
    """The names that a page's snippets may take for granted, new ones at each call."""
    model = torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(4 * 6 * 6, 10)
    )
    return {
        "torch": torch,
        "hvd": hvd,
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        "loader": [(torch.zeros(2, 1, 8, 8), torch.zeros(2, dtype=torch.int64))] * 3,
        "scaler": torch.amp.GradScaler("cpu"),
        "epoch": 0,
    }
