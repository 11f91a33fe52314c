"""``python -m horovod_dgc COMMAND``."""

from __future__ import annotations

import sys


def main() -> None:
    try:
        from horovod_dgc.plan.command import commands
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in ("click", "rich"):
            raise
        sys.exit(f"python -m horovod_dgc needs {missing}, which is not installed: pip install 'horovod_dgc[plan]'")
    commands(prog_name="python -m horovod_dgc")


if __name__ == "__main__":
    main()
