"""``python -m horovod_dgc COMMAND``."""

from __future__ import annotations

import sys


def main() -> None:
    try:
        from horovod_dgc.plan.command import commands
    except ModuleNotFoundError as error:
        if error.name not in ("click", "rich"):
            raise
        sys.exit(f"python -m horovod_dgc needs {error.name}, which is not installed: pip install 'horovod_dgc[plan]'")
    commands(prog_name="python -m horovod_dgc")


if __name__ == "__main__":
    main()
