"""Progress of steps that take minutes: moving on a terminal, and a line now and then where there is none."""

from __future__ import annotations

import contextlib
import re
import sys
import threading
import time
from collections.abc import Iterator
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn

# Seconds between two lines where there is no terminal.
INTERVAL = 30.0


class Step(Protocol):
    """A step that is under way."""

    def advance(self, done: int, total: int) -> None:
        """So many of so many parts are done."""

    def note(self, text: str) -> None:
        """Say something in between."""


def read(step: Step, line: str) -> None:
    """Advance by what make or ninja prints at a line's beginning: ``[ 42%]``, or ``[12/80]``."""
    if found := re.match(r"\s*\[\s*(\d+)%\]", line):
        step.advance(int(found.group(1)), 100)
    elif found := re.match(r"\s*\[(\d+)/(\d+)\]", line):
        step.advance(int(found.group(1)), int(found.group(2)))


@contextlib.contextmanager
def step(title: str, usually: float | None = None, console: Console | None = None) -> Iterator[Step]:
    """Show on standard error that this is being done, and at the end how long it took.

    Args:
        title: as in "compiling the TensorFlow operations".
        usually: seconds that it takes on two cores.
        console: where it is shown instead.
    """
    console = console or Console(stderr=True)
    begun = time.monotonic()
    expected = "" if usually is None else f"usually {duration(usually)}"
    with (_moving if console.is_terminal else _lines)(title, expected, console) as running:
        yield running
    console.print(f"{title}: done in {duration(time.monotonic() - begun)}", highlight=False, soft_wrap=True)


def duration(seconds: float) -> str:
    """As a person says it: 42 s, 3 min 5 s."""
    whole = round(seconds)
    minutes, rest = divmod(whole, 60)
    return f"{rest} s" if not minutes else f"{minutes} min" if not rest else f"{minutes} min {rest} s"


class _Moving:
    def __init__(self, progress: Progress, title: str, expected: str) -> None:
        self.progress = progress
        self.task = progress.add_task(title, total=None, expected=expected)

    def advance(self, done: int, total: int) -> None:
        self.progress.update(self.task, completed=done, total=total)

    def note(self, text: str) -> None:
        self.progress.console.print(text, highlight=False, soft_wrap=True)


@contextlib.contextmanager
def _moving(title: str, expected: str, console: Console) -> Iterator[Step]:
    columns = [
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[expected]}", style="dim"),
    ]
    with Progress(*columns, console=console, transient=True) as progress:
        yield _Moving(progress, title, expected)


class _Lines:
    def __init__(self, title: str, console: Console) -> None:
        self.title = title
        self.console = console
        self.begun = time.monotonic()
        self.share = ""

    def advance(self, done: int, total: int) -> None:
        self.share = f", {100 * done // max(total, 1)} %"

    def note(self, text: str) -> None:
        self.console.print(text, highlight=False, soft_wrap=True)

    def tell(self) -> None:
        self.note(f"{self.title}: {duration(time.monotonic() - self.begun)}{self.share}")


@contextlib.contextmanager
def _lines(title: str, expected: str, console: Console) -> Iterator[Step]:
    running = _Lines(title, console)
    running.note(f"{title} ({expected})" if expected else title)
    over = threading.Event()

    def now_and_then() -> None:
        while not over.wait(INTERVAL):
            running.tell()

    thread = threading.Thread(target=now_and_then, daemon=True)
    thread.start()
    try:
        yield running
    finally:
        over.set()
        thread.join()


def say(text: str) -> None:
    """A line on standard error."""
    print(text, file=sys.stderr, flush=True)
