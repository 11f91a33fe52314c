"""The module of CUDA kernels on a machine without a GPU: it is there, and says what it cannot do."""

from __future__ import annotations

import pytest
import torch

from horovod_dgc import _core, _cuda
from horovod_dgc.coding import Coding
from horovod_dgc.methods.dgc import DGC
from horovod_dgc.torch import kernels
from horovod_dgc.torch.backends import CoreBackend, TorchBackend


def layout(numel: int, density: float, **settings: str) -> _core.Layout:
    found = DGC(density=density, **settings).plan((1, numel)).codec.layout
    assert found is not None
    return found


@pytest.mark.parametrize("values", ["float32", "float16", "bfloat16", "int8", "int4"])
def test_layouts_that_kernels_know(values: str) -> None:
    for indices in ("elias-fano", "int32"):
        assert _cuda.has_format(layout(1000, 0.01, values=values, indices=indices))
    # Where every coordinate is sent there are no indices to code.
    assert _cuda.has_format(layout(1000, 1.0, values=values, indices="runlength16"))


def test_layouts_that_they_do_not() -> None:
    assert not _cuda.has_format(layout(1000, 0.01, indices="runlength16"))
    assert not _cuda.has_format(Coding().codec(1 << 31, 1 << 20).layout)
    with pytest.raises(ValueError, match="not coded on a GPU; allowed"):
        _cuda.Batch().add(layout(1000, 0.01, indices="runlength16"), _core.Update(), 16, "float32")
    with pytest.raises(ValueError, match="dtype is float64; allowed"):
        _cuda.Batch().add(layout(1000, 0.01), _core.Update(), 16, "float64")


def test_payloads_are_as_long_as_everywhere() -> None:
    batch = _cuda.Batch()
    layouts = [layout(n, d, values=v) for n, d, v in ((1000, 0.01, "float16"), (77, 1.0, "int4"), (5000, 0.2, "int8"))]
    for number, each in enumerate(layouts):
        assert batch.add(each, _core.Update(momentum=0.9), 16, "float32", residual=16, velocity=16) == number
    assert [batch.payload_nbytes(i) for i in range(len(batch))] == [each.nbytes for each in layouts]
    offsets = [batch.payload_offset(i) for i in range(len(batch))]
    assert offsets == sorted(offsets) and all(offset % 16 == 0 for offset in offsets)
    assert batch.payload_bytes >= offsets[-1] + layouts[-1].nbytes


def test_memory_stays_in_proportion() -> None:
    """What proposing needs for itself is far below a byte an element, and what it keeps eight for each coordinate."""
    numel = 10_000_000
    batch = _cuda.Batch()
    batch.add(layout(numel, 0.001), _core.Update(momentum=0.9), 16, "float32", residual=16, velocity=16)
    assert batch.scratch_bytes < 0.25 * numel
    assert 8 * 10_000 <= batch.kept_bytes < 8.1 * 10_000


def test_what_is_read_of_the_progress_is_there_by_name() -> None:
    assert {"nonfinite", "nonzero"} <= _cuda.progress_fields.keys()
    places = list(_cuda.progress_fields.values())
    assert len(set(places)) == len(places) and all(0 <= place < _cuda.progress_words for place in places)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_kernel_that_cannot_be_started_says_why() -> None:
    batch = _cuda.Batch()
    batch.add(layout(1000, 0.01), _core.Update(), 16, "float32")
    with pytest.raises(RuntimeError, match=r"CUDA kernel sample: .*driver.* \(compiled with CUDA \d+\.\d+\)"):
        batch.propose(0, 0, 0)


def test_other_devices_take_plain_torch_and_say_so() -> None:
    assert isinstance(kernels.backend_for(torch.device("cpu")), CoreBackend)
    with pytest.warns(UserWarning, match="no kernels for meta"):
        backend = kernels.backend_for(torch.device("meta"))
    assert type(backend) is TorchBackend


def test_a_gpu_without_kernels_takes_plain_torch_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_cuda", None)
    with pytest.warns(UserWarning, match=r"no kernels for cuda:7.*compile them once: python -m horovod_dgc build cuda"):
        backend = kernels.backend_for.__wrapped__(torch.device("cuda", 7))
    assert type(backend) is TorchBackend
