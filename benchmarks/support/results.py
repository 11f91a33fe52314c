"""Finished rows in a file of JSON lines."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any


class Results:
    """Rows in a file, each found again by some of its fields.

    Args:
        path: of the file; it need not exist.
        fields: that say which row it is, settings included: with other settings it is another row.
    """

    def __init__(self, path: Path, fields: Sequence[str]) -> None:
        self._path, self._fields = path, fields
        lines = path.read_text().splitlines() if path.exists() else []
        self._rows = {self._key(row): row for row in map(json.loads, lines)}

    def get(self, key: dict[str, Any]) -> dict[str, Any] | None:
        """The row whose fields are those of ``key``."""
        return self._rows.get(self._key(key))

    def add(self, key: dict[str, Any], found: dict[str, Any]) -> None:
        row = {**key, **found}
        self._rows[self._key(row)] = row
        self._path.parent.mkdir(parents=True, exist_ok=True)
        # One write in append mode: rows of several processes never mix, and a killed one leaves no half of a row.
        file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(file, (json.dumps(row) + "\n").encode())
        finally:
            os.close(file)

    def _key(self, row: dict[str, Any]) -> str:
        return json.dumps([row[field] for field in self._fields], sort_keys=True)
