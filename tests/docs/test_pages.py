"""What the project's Markdown says: its Python runs, its commands exist, its links lead somewhere, its lines fit."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import documents
import pytest
from click.testing import CliRunner
from documents import PAGES, ROOT, Command

from horovod_dgc.commands import commands as horovod_dgc_commands
from horovod_dgc.doctor.combinations import COMBINATIONS

HERE = Path(__file__).parent
TIMEOUT_SECONDS = 240
COLUMNS = 120

SNIPPETS = [snippet for page in PAGES for snippet in documents.snippets(page)]
# Snippets that say in the page why they cannot run.
NOT_RUN = {"docs/setup.md": 1}

by_page = pytest.mark.parametrize("page", PAGES, ids=documents.name)


def _in_process(program: str, framework: str, tasks: list[object]) -> str:
    """What `program`, which has the framework to itself, says of the tasks; "" if nothing is wrong."""
    finished = subprocess.run(
        [sys.executable, str(HERE / program), framework],
        input=json.dumps(tasks),
        text=True,
        capture_output=True,
        timeout=TIMEOUT_SECONDS,
    )
    if finished.returncode != 0 or f"did {len(tasks)}" not in finished.stdout:
        return f"ended with {finished.returncode}\n{finished.stdout[-8000:]}\n{finished.stderr[-4000:]}"
    return ""


@pytest.mark.parametrize("framework", ["torch", "tensorflow"])
def test_snippets_run(framework: str) -> None:
    ours = [s for s in SNIPPETS if s.framework == framework and s.not_run is None]
    assert ours
    wrong = _in_process("run_snippets.py", framework, [[s.page, s.section, s.line, s.source] for s in ours])
    assert not wrong, wrong


def test_snippets_that_do_not_run_are_few() -> None:
    found: dict[str, int] = {}
    for snippet in SNIPPETS:
        if snippet.not_run is not None:
            found[snippet.page] = found.get(snippet.page, 0) + 1
    assert found == NOT_RUN


def _make(page: Path) -> list[Command]:
    return documents.commands(page, "make")


def test_every_make_target_that_is_named_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z][a-z0-9-]*):", makefile, re.MULTILINE))
    settings = makefile + "".join(path.read_text() for path in sorted((ROOT / "tools").glob("*.sh")))
    variables = set(re.findall(r"\$[({]?([A-Z][A-Z_]*)", settings))
    named = {(str(command), word) for page in PAGES for command in _make(page) for word in command.words}
    for path in [ROOT / "Makefile", *_sources()]:
        text = path.read_text(encoding="utf-8", errors="replace")
        named |= {(str(path), target) for target in re.findall(r"`make ([a-z][a-z0-9-]*)", text)}
    assert len(named) > 30
    wrong = [f"{where}: {word}" for where, word in sorted(named) if not _known(word, targets, variables)]
    assert not wrong, "\n".join(wrong)


def _known(word: str, targets: set[str], variables: set[str]) -> bool:
    variable, equals, _ = word.partition("=")
    return variable in variables if equals else word in targets or word.startswith("-")


def _sources() -> list[Path]:
    kinds = {".py", ".pyi", ".sh", ".toml", ".cc", ".h", ".cu", ".txt", ".yaml"}
    folders = ("horovod_dgc", "csrc", "tests", "examples", "benchmarks", "tools", "docker", "requirements")
    return sorted(
        path
        for path in [*ROOT.glob("*"), *(inside for folder in folders for inside in (ROOT / folder).rglob("*"))]
        if path.is_file() and (path.suffix in kinds or path.name in ("Dockerfile", "run"))
    )


def _own_commands() -> list[Command]:
    found = []
    for page in PAGES:
        found += documents.commands(page, "horovod-dgc")
        for command in documents.commands(page, "python"):
            words = [word for word in command.words if word != "-P"]
            if words[:2] == ["-m", "horovod_dgc"]:
                found.append(Command(command.page, command.line, tuple(words[2:])))
    return found


def test_plans_that_are_shown_can_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    plans = [c for c in _own_commands() if c.words[:1] == ("plan",) and len(c.words) > 2]
    assert len(plans) >= 3
    for command in plans:
        for word in command.words:
            Path(word).parent.mkdir(parents=True, exist_ok=True)
        result = CliRunner().invoke(horovod_dgc_commands, list(command.words))
        assert result.exit_code == 0, f"{command}\n{result.output}"
        assert "recommended" in result.output, command


def test_versions_that_doctor_knows_are_those_of_the_pages() -> None:
    readme = (ROOT / "README.md").read_text()
    page = (ROOT / "docs" / "reliability.md").read_text().split("## Versions that were tried")[1]
    for combination in COMBINATIONS:
        assert combination.versions[combination.framework] in readme, combination
        missing = [version for version in combination.everything().values() if version not in page]
        assert not missing, f"{combination}: {missing}"


def test_the_page_of_plan_has_all_of_its_options_and_no_other() -> None:
    options = {name for parameter in horovod_dgc_commands.commands["plan"].params for name in parameter.opts}
    said = re.findall(r"`(--[a-z-]+)", (ROOT / "docs" / "plan.md").read_text())
    assert set(said) == {option for option in options if option.startswith("--")} | {"--compression"}


@pytest.mark.parametrize("framework", ["torch", "tensorflow"])
def test_commands_exist_and_have_these_options(framework: str) -> None:
    tasks: list[object] = []
    if framework == "torch":
        tasks += [[str(command), "horovod_dgc", command.words] for command in _own_commands()]
        assert len(tasks) >= 5
    for command in [command for page in PAGES for command in documents.commands(page, "python")]:
        words = [word.replace("/opt/examples/", "examples/") for word in command.words if word != "-P"]
        if words[:2] == ["-m", "pytest"]:
            paths = [word for word in words[2:] if "/" in word and not word.startswith("-")]
            assert all((ROOT / path.partition("::")[0]).exists() for path in paths), command
        elif words and re.match(r"(examples|benchmarks|tools|tests)/", words[0]):
            assert (ROOT / words[0]).exists(), command
            if ("tensorflow" in words[0]) == (framework == "tensorflow"):
                tasks.append([str(command), words[0], words[1:]])
    wrong = _in_process("parse_commands.py", framework, tasks) if tasks else ""
    assert not wrong, wrong


@by_page
def test_links_lead_somewhere(page: Path) -> None:
    wrong = []
    for line, link in documents.links(page):
        if re.match(r"[a-z]+:", link):
            continue
        target, _, anchor = link.partition("#")
        path = (page.parent / target).resolve() if target else page
        if not path.exists() or (anchor and anchor not in documents.anchors(path)):
            wrong.append(f"{documents.name(page)}:{line}: {link}")
    assert not wrong, "\n".join(wrong)


@by_page
def test_lines_fit(page: Path) -> None:
    """Prose and code; rows of tables, and what programs have printed, may be as wide as they are."""
    free: set[int] = set()
    for token in documents.tokens(page):
        wide = token.type == "table_open" or (token.type == "fence" and not token.info.strip())
        if wide and token.map is not None:
            free.update(range(*token.map))
    lines = page.read_text(encoding="utf-8").splitlines()
    wrong = [f"{documents.name(page)}:{n + 1}" for n, line in enumerate(lines) if len(line) > COLUMNS and n not in free]
    assert not wrong, "\n".join(wrong)
