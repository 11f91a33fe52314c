"""Runs snippets of the project's Markdown in one process: ``run_snippets.py torch|tensorflow``.

On standard input a JSON list of [page, section, line, source]. Snippets of a page share their names, in order, and find
a user's own objects there (``stand_ins_*.py``), new ones in each section. Files that they write are in a temporary
folder. A line that is an expression with a number as its comment (``f()  # 1.5``) must have this value, to the digits
given.
"""

from __future__ import annotations

import ast
import importlib
import json
import os
import re
import sys
import tempfile
import traceback
from itertools import groupby
from typing import Any

_VALUE = re.compile(r"#\s*(-?[\d,]+(?:\.(\d+))?)\s*$")


def run(page: str, line: int, source: str, names: dict[str, Any]) -> None:
    """Run one snippet.

    Raises:
        AssertionError: a value is another than its comment says.
    """
    lines = source.splitlines()
    for statement in ast.parse(source).body:
        # Numbered as in the page.
        ast.increment_lineno(statement, line - 1)
        comment = _VALUE.search(lines[statement.end_lineno - line])
        if isinstance(statement, ast.Expr) and comment:
            value = eval(compile(ast.Expression(statement.value), page, "eval"), names)
            shown, digits = comment[1].replace(",", ""), len(comment[2] or "")
            assert f"{value:.{digits}f}" == shown, f"{page}:{statement.lineno}: {value}, and the page says {shown}"
        else:
            exec(compile(ast.Module([statement], []), page, "exec"), names)


def main() -> None:
    snippets = json.load(sys.stdin)
    stand_ins = importlib.import_module(f"stand_ins_{sys.argv[1]}")
    done = 0
    failed = False
    for page, on_page in groupby(snippets, key=lambda snippet: snippet[0]):
        names: dict[str, Any] = {}
        current = None
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            for _, section, line, source in on_page:
                if section != current:
                    current = section
                    names.update(stand_ins.objects())
                try:
                    run(page, line, source, names)
                    done += 1
                except Exception:
                    failed = True
                    print(f"{page}:{line}\n{source}\n{traceback.format_exc()}")
                    break
            os.chdir("/")
    print(f"did {done}")
    sys.stdout.flush()
    # At its exit Horovod would wait for what a snippet has begun and not ended.
    os._exit(failed)


main()
