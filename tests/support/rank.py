"""The side of checks that runs on every rank."""

from __future__ import annotations

import faulthandler
import gc
import importlib
import json
import os
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

LONG = os.environ.get("HOROVOD_DGC_TEST_LENGTH") == "long"
STARTED = "started"


def by_length(short: int, long: int) -> int:
    """How often to repeat something: ``short`` in `make test`, ``long`` in the long tests."""
    return long if LONG else short


def begins(check: str) -> str:
    """What every rank prints before a check."""
    return f"--- {check}\n"


def run_checks(rank: int, gather: Callable[[Any, str], list[Any]], refresh: Callable[[], None] = gc.collect) -> None:
    """Run the checks that the command line names, one after another, up to the first that fails.

    The command line is RESULTS SECONDS GRACE MODULE[::CHECK]...: the file that rank 0 appends a line of JSON to as soon
    as an outcome is known, the seconds after which every rank prints where it is in a check, and those that a rank on
    which a check has failed waits for the others before it ends the job. A check passes if it raises on no rank.

    Args:
        gather: from an object and a name to the objects of all ranks.
        refresh: called before each check, so that nothing is left of those before it.
    """
    results, seconds, grace, *chosen = sys.argv[1:]
    # Whatever the package does that Python or a library warns of; what it warns its users of is theirs.
    warnings.filterwarnings("error", module="horovod_dgc")

    def note(check: str, **what: Any) -> None:
        if rank == 0:
            with Path(results).open("a") as file:
                file.write(json.dumps({"check": check, **what}) + "\n")

    checks = [found for name in chosen for found in named(name)]
    gather("", STARTED)
    note(STARTED)
    for check, function in checks:
        refresh()
        # In one piece, whatever the launcher makes of the ranks' output; and before any other output of this rank.
        sys.stdout.write(begins(check))
        sys.stdout.flush()
        faulthandler.dump_traceback_later(float(seconds))
        began = time.monotonic()
        failure = ""
        try:
            with warnings.catch_warnings():
                function()
        except BaseException:
            # Printed at once as well: if the others hang now, this is the only word of it.
            traceback.print_exc()
            failure = f"rank {rank}:\n{traceback.format_exc()}"
            faulthandler.dump_traceback_later(float(grace), exit=True)
        failures = list(filter(None, gather(failure, f"outcome.{check}")))
        note(check, failure="\n".join(failures), seconds=time.monotonic() - began)
        if failures:
            # What it leaves behind, collectives of one rank alone for instance, is no fault of the next. Nobody ends
            # before that is noted, and nobody waits for ever.
            gather("", f"noted.{check}")
            faulthandler.dump_traceback_later(float(grace), exit=True)
            return
    faulthandler.cancel_dump_traceback_later()


def named(name: str) -> list[tuple[str, Callable[[], None]]]:
    """Name and function of each check that MODULE or MODULE::CHECK stands for."""
    module_name, _, chosen = name.partition("::")
    module: ModuleType = importlib.import_module(f"checks.{module_name}")
    checks = [chosen] if chosen else sorted(each for each in dir(module) if each.startswith("check_"))
    return [(f"{module_name}::{check}", getattr(module, check)) for check in checks]


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
