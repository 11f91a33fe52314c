"""The lab's modules for its tests, and a reason to skip them where there can be no lab."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "benchmarks"), str(Path(__file__).parent)]

from cluster import tools  # noqa: E402


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = tools.reason_against() or tools.refusal()
    if reason is not None:
        for item in items:
            if item.path.is_relative_to(Path(__file__).parent) and "without_lab" not in item.keywords:
                item.add_marker(pytest.mark.skip(reason=reason))
