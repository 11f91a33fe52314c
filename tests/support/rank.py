"""The side of checks that runs on every rank."""

from __future__ import annotations

import faulthandler
import importlib
import json
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any


def run_checks(rank: int, gather: Callable[[Any, str], list[Any]]) -> None:
    """All ``check_*`` functions of the module that the command line names, one after another.

    The command line names the module, the file that rank 0 writes the outcome to, and, if the job has a time limit,
    the seconds after which every rank prints its threads' stacks. A check passes if it raises on no rank.

    Args:
        gather: from an object and a name to the objects of all ranks.
    """
    # Whatever the package does that Python or a library warns of; what it warns its users of is theirs.
    warnings.filterwarnings("error", module="horovod_dgc")
    if len(sys.argv) > 3:
        faulthandler.dump_traceback_later(float(sys.argv[3]))
    module = importlib.import_module(f"checks.{sys.argv[1]}")
    outcome: dict[str, str] = {}
    for name in sorted(n for n in dir(module) if n.startswith("check_")):
        if rank == 0:
            print(name, flush=True)
        try:
            getattr(module, name)()
            failure = ""
        except BaseException:
            # Printed at once as well: if the other ranks hang now, the outcome is never written.
            traceback.print_exc()
            failure = f"rank {rank}:\n{traceback.format_exc()}"
        outcome[name] = "\n".join(filter(None, gather(failure, f"outcome.{name}")))
    if rank == 0:
        Path(sys.argv[2]).write_text(json.dumps(outcome))


class raises:
    """Context that passes if ``error`` is raised on this rank with all of ``words`` in its message."""

    def __init__(self, error: type[BaseException], *words: str) -> None:
        self.error, self.words = error, words

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, _: Any) -> bool:
        assert kind is not None, f"no {self.error.__name__} was raised"
        if not issubclass(kind, self.error):
            return False
        missing = [word for word in self.words if word not in str(value)]
        assert not missing, f"{str(value)!r} does not say {missing}"
        return True
