"""Tests that need a GPU; without one they are skipped, and say why."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from horovod_dgc.torch import kernels


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        why = "no GPU here"
    elif kernels._cuda is None:
        why = "horovod_dgc was built without CUDA kernels"
    else:
        return
    for item in items:
        # pytest hands over the items of all folders.
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.skip(reason=why))
