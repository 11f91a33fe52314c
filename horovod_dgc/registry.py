"""Methods by name, for command lines and configuration files."""

from __future__ import annotations

from typing import Any

from horovod_dgc import _checks
from horovod_dgc.method import Method
from horovod_dgc.methods.dgc import DGC

METHODS: dict[str, type[Method]] = {
    "dgc": DGC,
}


def method(name: str, **settings: Any) -> Method:
    """The method of this name, as in ``method("dgc", density=0.01)``.

    Raises:
        ValueError: an unknown name, with the known ones and the nearest match; an unknown setting; or a setting out
            of range.
    """
    kind = METHODS[_checks.one_of("method", name, METHODS)]
    known = list(kind.__dataclass_fields__)  # type: ignore[attr-defined]
    for setting in settings:
        _checks.one_of(f"setting of {name!r}", setting, known)
    return kind(**settings)
