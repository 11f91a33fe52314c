#!/usr/bin/env bash
# Runs a command, unless it has passed before with the same files, compilers, packages and words.
# Usage: unless_unchanged.sh NAME PATH... -- COMMAND...
# FORCE=1 in the environment runs it in any case, and so does CI=true.
set -euo pipefail

name=$1 paths=()
shift
while [[ $1 != -- ]]; do
  paths+=("$1")
  shift
done
shift

digest() {
  {
    printf '%s\n' "$@"
    # Of the compilers and packages, whichever are there.
    { cat .venv/stamp-packages; g++ --version; clang++ --version; } 2>/dev/null || true
    # What git ignores is made from the rest.
    find "${paths[@]}" -type f -not -name '*.so' -not -name '*.pyc' -not -path '*.egg-info/*' -not -path '*/built/*' \
      -print0 | sort -z | xargs -0 sha256sum
  } | sha256sum
}

passed=build/passed/$name
before=$(digest "$@")
if [[ ${FORCE:-} != 1 && ${CI:-} != true && $before == "$(cat "$passed" 2>/dev/null)" ]]; then
  echo "$name: passed with these very files on $(date -r "$passed" '+%F %R'); FORCE=1 runs it again"
  exit 0
fi
rm -f "$passed"
"$@"
# Not what has been edited in the meantime.
[[ $(digest "$@") == "$before" ]] || exit 0
mkdir -p "${passed%/*}"
echo "$before" >"$passed.unfinished"
mv "$passed.unfinished" "$passed"
