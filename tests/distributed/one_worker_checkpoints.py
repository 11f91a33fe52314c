"""Run alone: one worker's checkpoints hold no residuals, and those of several workers cannot be applied by one."""

import tempfile
import warnings
from pathlib import Path

import horovod.torch as hvd
from checks.checkpoints import METHODS, assert_same, fed, nesterov, restore, snapshot, steps, write_as
from checks.common import compressed, small_model
from rank import raises

from horovod_dgc.checkpoint import CheckpointError
from horovod_dgc.torch import load_checkpoint, save_checkpoint

hvd.init()
assert hvd.size() == 1
with tempfile.TemporaryDirectory() as scratch:
    folder = Path(scratch)
    model, again = small_model(), small_model(seed=99)
    optimizer, compression = compressed(METHODS[0], model, nesterov(model), settings={})
    steps(model, optimizer, range(3))
    assert save_checkpoint(folder / "one", compression) == 0
    saved = snapshot(model, optimizer, compression)
    steps(model, optimizer, range(3, 6))
    resumed, theirs = compressed(METHODS[0], again, nesterov(again), settings={})
    restore(saved, again, resumed)
    assert load_checkpoint(folder / "one", theirs) == 0
    theirs.load_state_dict(saved["compression"])
    steps(again, resumed, range(3, 6))
    assert_same((model, compression), (again, theirs), "one worker")

    for workers in (1, 3):
        write_as(workers, folder / f"of {workers}", "average")
        _, _, other = fed(momentum=0.5)
        with raises(CheckpointError, "one worker", "resize='drop'"):
            load_checkpoint(folder / f"of {workers}", other)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert load_checkpoint(folder / "of 3", other, resize="drop") == 9
    assert len(caught) == 1 and "3 workers dropped for 1" in str(caught[0].message), caught
    assert save_checkpoint(folder / "again", other) == 9
    assert all(entry["residual"] is None for entry in other.state_dict()["tensors"].values())
print("one worker's checkpoints are lossless")
