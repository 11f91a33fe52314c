"""``python -m horovod_dgc COMMAND``, and the console script ``horovod-dgc COMMAND``."""

from __future__ import annotations

from horovod_dgc.commands import commands


def main() -> None:
    commands(prog_name="horovod-dgc")


if __name__ == "__main__":
    main()
