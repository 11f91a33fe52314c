"""Does what is about to be published agree with itself? Prints every fault; the exit status is 1 if there is one."""

import re
import subprocess
import sys
from pathlib import Path


def git(root: Path, *words: str) -> str:
    return subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=True).stdout.strip()


def version_of(root: Path) -> str:
    found = re.search(r'^__version__ = "(.+)"$', (root / "horovod_dgc" / "__init__.py").read_text(), re.MULTILINE)
    assert found is not None, "horovod_dgc/__init__.py has no __version__"
    return found.group(1)


def faults(root: Path) -> "list[str]":
    version = version_of(root)
    found = []
    if git(root, "status", "--porcelain"):
        found.append("the tree has changes that are not committed")
    tags = git(root, "tag", "--points-at", "HEAD").split()
    if f"v{version}" not in tags:
        found.append(f"the version is {version}, so this commit must have the tag v{version}; it has {tags or 'none'}")
    if not re.search(rf"^## \[?{re.escape(version)}\]?\b", (root / "CHANGELOG.md").read_text(), re.MULTILINE):
        found.append(f"CHANGELOG.md has no heading '## [{version}]'")
    names = sorted(path.name for path in (root / "dist").glob("*"))
    if f"horovod_dgc-{version}.tar.gz" not in names:
        found.append(f"dist/ has no sdist of {version}: run make wheel")
    if not any(name.endswith(".whl") for name in names):
        found.append(f"dist/ has no wheel of {version}: run make wheel")
    for name in names:
        if not name.startswith(f"horovod_dgc-{version}") or not name.endswith((".tar.gz", ".whl")):
            found.append(f"dist/{name} does not belong to {version}: remove it")
        elif name.endswith(".whl") and "-manylinux_" not in name:
            found.append(f"dist/{name} is for this machine alone: it has no manylinux tag")
    return found


if __name__ == "__main__":
    root = Path(sys.argv[1] if len(sys.argv) > 1 else __file__).resolve()
    root = root if root.is_dir() else root.parents[1]
    problems = faults(root)
    for problem in problems:
        print(f"release: {problem}", file=sys.stderr)
    if problems:
        raise SystemExit(1)
    print(f"release: {version_of(root)} is ready to be published")
