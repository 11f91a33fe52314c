"""The project's Markdown: its snippets of Python, its command lines, its links, and the anchors of its headings."""

from __future__ import annotations

import functools
import itertools
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("docs", "docker", "csrc", "examples", "benchmarks", "tests", "tools")
PAGES = sorted([*ROOT.glob("*.md"), *(page for folder in FOLDERS for page in (ROOT / folder).rglob("*.md"))])

# What an HTML comment in a page says of the snippets after it.
FRAMEWORK = re.compile(r"<!-- snippets: (torch|tensorflow) -->")
NOT_RUN = re.compile(r"<!-- not run: (\S.*) -->")


@dataclass(frozen=True)
class Snippet:
    """Lines of Python in a page.

    Attributes:
        page: relative to the project's root.
        line: number of its first line.
        source: the lines.
        section: number of the page's section that it stands in.
        framework: whose stand-ins it needs, "torch" or "tensorflow".
        not_run: why it cannot run, or None.
    """

    page: str
    line: int
    source: str
    section: int
    framework: str
    not_run: str | None = None


@dataclass(frozen=True)
class Command:
    """A command line that a page gives, without what stands before the program's name."""

    page: str
    line: int
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {shlex.join(self.words)}"


@functools.cache
def tokens(page: Path) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse(page.read_text(encoding="utf-8"))


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def _line(token: Token) -> int:
    """Number of the first line of a block's content."""
    assert token.map is not None
    return token.map[0] + (2 if token.type == "fence" else 1)


def snippets(page: Path) -> list[Snippet]:
    """The page's Python. Of a ``diff`` there are two: with the lines that go, and with those that come."""
    found = []
    section, framework, not_run = 0, "torch", None
    for token in tokens(page):
        section += token.type == "heading_open"
        if token.type == "html_block":
            if match := FRAMEWORK.search(token.content):
                framework = match[1]
            if match := NOT_RUN.search(token.content):
                not_run = match[1]
        if token.type != "fence":
            continue
        language = token.info.strip()
        sources = []
        if language == "python":
            sources = [token.content]
        elif language == "diff":
            sources = [_side(token.content, "+"), _side(token.content, "-")]
        found += [Snippet(name(page), _line(token), source, section, framework, not_run) for source in sources]
        not_run = None
    return found


def _side(diff: str, other: str) -> str:
    """One side of a diff, with an empty line for each line of the other."""
    return "\n".join("" if line.startswith(other) else line[1:] for line in diff.splitlines())


def _code(page: Path) -> Iterator[tuple[int, str]]:
    """Line number and text of everything set as code that is not Python, each command in one piece."""
    for token in tokens(page):
        if token.type == "code_block" or (token.type == "fence" and token.info.strip() not in ("python", "diff")):
            start = _line(token)
            pieces = token.content.split("\n")
            while pieces:
                here, piece = start, pieces.pop(0)
                start += 1
                while piece.endswith("\\") and pieces:
                    piece = piece[:-1] + pieces.pop(0)
                    start += 1
                yield here, piece
        elif token.type == "inline":
            for child in token.children or ():
                if child.type == "code_inline":
                    yield token.map[0] + 1, child.content  # type: ignore[index]


_SEPARATOR = re.compile(r"[;|<>&]+")
_PYTHON = re.compile(r"(.*/)?python(3(\.\d+)?)?")


def commands(page: Path, program: str) -> list[Command]:
    """The page's calls of ``make``, ``python`` or ``horovod-dgc``, also by way of a launcher or after ``&&``."""
    found = []
    for line, text in _code(page):
        if program not in text:
            continue
        lexer = shlex.shlex(text, posix=True, punctuation_chars=";|<>&")
        lexer.whitespace_split = True
        try:
            words = list(lexer)
        except ValueError:
            # A sentence or a message with an apostrophe.
            if re.match(rf"\s*(sudo |\S*/)?{program}\b", text):
                raise
            continue
        for separates, group in itertools.groupby(words, lambda word: _SEPARATOR.fullmatch(word) is not None):
            call = [word for word in group if word not in ("...", "…", "$", "sudo")]
            # Variables before the program's name.
            call = list(itertools.dropwhile(lambda word: re.match(r"[A-Z_]+=", word), call))
            for place, word in enumerate([] if separates else call):
                if _is(program, word) and (place == 0 or program != "make"):
                    found.append(Command(name(page), line, tuple(call[place + 1 :])))
    return found


def _is(program: str, word: str) -> bool:
    return _PYTHON.fullmatch(word) is not None if program == "python" else word == program


def links(page: Path) -> list[tuple[int, str]]:
    """Line number and target of each link and image."""
    found = []
    for token in tokens(page):
        for child in token.children or ():
            target = child.attrGet("href") if child.type == "link_open" else child.attrGet("src")
            if child.type in ("link_open", "image") and target:
                found.append((token.map[0] + 1, unquote(str(target))))  # type: ignore[index]
    return found


@functools.cache
def anchors(page: Path) -> frozenset[str]:
    """The anchors that a host of repositories gives to the page's headings."""
    found: dict[str, int] = {}
    result = set()
    stream = tokens(page)
    for opening, inline in zip(stream, stream[1:]):
        if opening.type != "heading_open":
            continue
        shown = "".join(child.content for child in inline.children or () if child.type in ("text", "code_inline"))
        anchor = re.sub(r"[^\w\- ]", "", shown.lower()).replace(" ", "-")
        repeated = found.get(anchor, 0)
        found[anchor] = repeated + 1
        result.add(f"{anchor}-{repeated}" if repeated else anchor)
    return frozenset(result)
