"""Run on every rank: all ``check_*`` functions of one module, one after another; rank 0 writes the outcome.

A check passes if it raises on no rank. Usage: run_checks.py MODULE RESULT_FILE
"""

from __future__ import annotations

import importlib
import json
import sys
import traceback
from pathlib import Path

import horovod.torch as hvd
import torch

sys.path.insert(0, str(Path(__file__).parent))


def main() -> None:
    module = importlib.import_module(f"checks.{sys.argv[1]}")
    torch.set_num_threads(1)
    hvd.init(process_sets="dynamic")
    outcome: dict[str, str] = {}
    for name in sorted(n for n in dir(module) if n.startswith("check_")):
        try:
            getattr(module, name)()
            failure = ""
        except BaseException:
            # Printed at once as well: if the other ranks hang now, the outcome is never written.
            traceback.print_exc()
            failure = f"rank {hvd.rank()}:\n{traceback.format_exc()}"
        outcome[name] = "\n".join(filter(None, hvd.allgather_object(failure, name=f"outcome.{name}")))
    if hvd.rank() == 0:
        Path(sys.argv[2]).write_text(json.dumps(outcome))
    hvd.shutdown()


if __name__ == "__main__":
    main()
