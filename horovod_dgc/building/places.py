"""Where what is compiled after the installation is put, and found again."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

from horovod_dgc.building import extensions

PACKAGE = Path(__file__).resolve().parents[1]


def sources() -> Path:
    """The folder csrc/: in the installed package, or beside the package in a source tree."""
    inside, beside = PACKAGE / "csrc", PACKAGE.parent / "csrc"
    return inside if inside.is_dir() else beside


def cache() -> Path:
    """The folder that is kept between runs, of all installations of this user."""
    chosen = os.environ.get("HOROVOD_DGC_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "horovod_dgc"


def folders() -> list[Path]:
    """Where compiled parts are looked for: in the package, where they go if it can be written to, then the user's.

    The digest of the sources is in their names: what another version of the package left behind is never loaded.
    """
    digest = extensions.sources_digest(sources())
    return [PACKAGE / "built" / digest, cache() / "built" / digest]


def target() -> Path:
    """The folder that a part compiled now is put in."""
    package, user = folders()
    return package if os.access(PACKAGE, os.W_OK) else user


def find(installed: Path, name: str) -> Path | None:
    """The file of this name: compiled afterwards, or else with the package, in the folder ``installed``."""
    # What was compiled afterwards comes first: somebody had a reason to compile it.
    return next((folder / name for folder in [*folders(), installed] if (folder / name).exists()), None)


def load_kernels() -> ModuleType | None:
    """The module ``horovod_dgc._cuda``, or None where it has not been compiled."""
    name = "horovod_dgc._cuda"
    if name in sys.modules:
        return sys.modules[name]
    path = find(PACKAGE, extensions.kernels_name())
    if path is None:
        return None
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules[name] = module
    return module
