"""The arithmetic of a step in the core and in plain torch: the same rules, to the last bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from horovod_dgc import _core
from horovod_dgc.torch.backends import CoreBackend, TorchBackend

BACKENDS = [CoreBackend(), TorchBackend(torch.device("cpu"))]


@pytest.mark.parametrize("backend", BACKENDS, ids=["core", "torch"])
def test_vote_is_the_cores(backend: CoreBackend | TorchBackend) -> None:
    """Of sums with ties, zeros of both signs, and what is not finite."""
    sums = torch.cat([torch.tensor([0.0, -0.0, np.nan, np.inf, -np.inf, 1e-30, -2.0]), torch.randn(1000).round()])
    expected = sums.numpy().copy()
    _core.vote(expected)
    assert set(expected[np.isfinite(expected)]) == {-1.0, 0.0, 1.0} and np.isnan(expected[2:5]).all()
    backend.vote(sums)
    ours = sums.numpy()
    np.testing.assert_array_equal(ours, expected)
    np.testing.assert_array_equal(np.signbit(ours)[expected == 0], False)
