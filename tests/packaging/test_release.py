"""`make release-check`: tag, version, CHANGELOG and files agree, or every fault is named."""

import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).resolve().parents[2] / "tools" / "check_release.py"
VERSION = "1.2.0"


def git(root: Path, *words: str) -> None:
    identity = ["-c", "user.name=Somebody", "-c", "user.email=somebody@example.org"]
    subprocess.run(["git", "-C", root, *identity, *words], check=True, capture_output=True)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A tree that can be released."""
    (tmp_path / "horovod_dgc").mkdir()
    (tmp_path / "horovod_dgc" / "__init__.py").write_text(f'"""A package."""\n\n__version__ = "{VERSION}"\n')
    (tmp_path / "CHANGELOG.md").write_text(f"# Changelog\n\n## [{VERSION}]\n\n- Something.\n")
    (tmp_path / ".gitignore").write_text("/dist/\n")
    git(tmp_path, "init")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "A release")
    git(tmp_path, "tag", f"v{VERSION}")
    (tmp_path / "dist").mkdir()
    for end in (".tar.gz", "-cp39-cp39-manylinux_2_34_x86_64.whl"):
        (tmp_path / "dist" / f"horovod_dgc-{VERSION}{end}").touch()
    return tmp_path


def check(root: Path) -> tuple[int, str]:
    result = subprocess.run([sys.executable, TOOL, root], capture_output=True, text=True, check=False)
    return result.returncode, result.stdout + result.stderr


def test_what_agrees_is_ready(root: Path) -> None:
    status, said = check(root)
    assert (status, said) == (0, f"release: {VERSION} is ready to be published\n")


def test_a_tag_of_another_version(root: Path) -> None:
    git(root, "tag", "-d", f"v{VERSION}")
    git(root, "tag", "v1.1.0")
    status, said = check(root)
    assert status == 1 and "this commit must have the tag v1.2.0; it has ['v1.1.0']" in said


def test_a_tag_of_another_commit(root: Path) -> None:
    git(root, "commit", "--allow-empty", "-m", "One more")
    status, said = check(root)
    assert status == 1 and "must have the tag v1.2.0; it has none" in said


def test_everything_else_that_can_be_forgotten(root: Path) -> None:
    (root / "CHANGELOG.md").write_text("# Changelog\n\n## [Unreleased]\n")
    (root / "dist" / f"horovod_dgc-{VERSION}.tar.gz").unlink()
    (root / "dist" / "horovod_dgc-1.1.0.tar.gz").touch()
    (root / "dist" / f"horovod_dgc-{VERSION}-cp313-cp313-linux_x86_64.whl").touch()
    status, said = check(root)
    assert status == 1
    for fault in ("not committed", "has no heading '## [1.2.0]'", "no sdist", "1.1.0.tar.gz does not belong", "alone"):
        assert fault in said
