#!/usr/bin/env bash
# Prepares everything that the Makefile's targets need: system packages, an environment, pinned packages,
# Horovod and the package itself. Does only what is missing, so that it can be run before every target.
# Usage: env.sh [--lab|--containers] [NAME]. Without NAME the environment is .venv, made from requirements/*.txt and with the package
# in editable mode; with it .venv-NAME, made from requirements/NAME/*.txt and with the package copied in.
# --lab adds the system packages that the network lab of benchmarks/cluster needs, --containers those besides with which
# the image of docker/ is built and run.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Settings of the calling shell or make that would leak into the environment made here.
unset PYTHONPATH PYTHONHOME MAKEFLAGS MFLAGS MAKELEVEL
export PIP_NO_INPUT=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_USER=0 PIP_REQUIRE_VIRTUALENV=0

extra=
if [[ ${1:-} == --* ]]; then
  extra=${1#--}
  shift
fi
name=${1:-}
venv=.venv${name:+-$name}
requirements=requirements${name:+/$name}
make_target="make env${name:+-$name}"
packages_stamp=$venv/stamp-packages
package_stamp=$venv/stamp-horovod_dgc
unfinished=$venv/unfinished
cache=${HOROVOD_DGC_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/horovod_dgc}

say() { printf 'env: %s\n' "$*"; }
die() {
  printf 'env: error: %s\n' "$*" >&2
  exit 1
}
quiet_pip() { "$venv/bin/python" -m pip "$1" -qq "${@:2}"; }

find_python() {
  local candidate
  for candidate in ${PYTHON:-python3.11 python3 /usr/bin/python3.11}; do
    # The interpreter's own answer: a version manager's shim exists even where it cannot run, and in an active
    # .venv the name leads to what may be about to be deleted.
    "$candidate" -c 'import os, sys
sys.version_info[:2] == (3, 11) or sys.exit(1)
print(os.path.join(sys.base_prefix, "bin", "python3.11"))' 2>/dev/null && return
  done
  return 1
}

has_header() {
  printf '#if !__has_include(<%s>)\n#error\n#endif\n' "$1" | g++ -E -x c++ - >/dev/null 2>&1
}

has_libfuzzer() {
  local builtins
  builtins=$(clang++ --rtlib=compiler-rt -print-libgcc-file-name 2>/dev/null) && [[ -e ${builtins/builtins/fuzzer} ]]
}

missing_system_packages() {
  local python
  if python=$(find_python); then
    "$python" -c 'import ensurepip, venv' 2>/dev/null || echo python3.11-venv
    "$python" -c 'import os.path, sysconfig
os.stat(os.path.join(sysconfig.get_path("include"), "Python.h"))' 2>/dev/null || echo python3.11-dev
  else
    printf '%s\n' python3.11 python3.11-venv python3.11-dev
  fi
  command -v make >/dev/null || echo make
  command -v mpirun >/dev/null || echo openmpi-bin
  command -v mpicxx >/dev/null || echo libopenmpi-dev
  command -v ssh >/dev/null || echo openssh-client
  command -v g++ >/dev/null || echo g++
  has_header gtest/gtest.h || echo libgtest-dev
  has_header benchmark/benchmark.h || echo libbenchmark-dev
  if ! has_libfuzzer; then
    echo clang
    # A package of its own, but in older distributions.
    [[ $(. /etc/os-release && echo "$ID $VERSION_ID") == "ubuntu 22.04" ]] || echo libclang-rt-dev
  fi
  case $extra in
    lab) missing_lab_packages ;;
    containers) missing_lab_packages && missing_container_packages ;;
  esac
}

missing_lab_packages() {
  # Programs for administrators, which not every PATH holds.
  local PATH=$PATH:/usr/sbin:/sbin
  command -v ip >/dev/null && command -v tc >/dev/null || echo iproute2
  command -v sshd >/dev/null || echo openssh-server
}

missing_container_packages() {
  local program
  for program in buildah podman runc mmdebstrap; do
    PATH=$PATH:/usr/sbin:/sbin command -v "$program" >/dev/null || echo "$program"
  done
}

install_system_packages() {
  local missing log no_sshd
  mapfile -t missing < <(missing_system_packages)
  [[ ${#missing[@]} -gt 0 ]] || return 0
  if [[ -n ${PYTHON:-} && " ${missing[*]} " == *" python3.11 "* ]]; then
    die "PYTHON=$PYTHON is not a Python 3.11"
  fi
  command -v apt-get >/dev/null ||
    die "install what these Debian packages hold, then run this again: ${missing[*]}"
  no_sshd=
  [[ " ${missing[*]} " != *" openssh-server "* ]] || no_sshd="mkdir -p /etc/ssh && touch /etc/ssh/sshd_not_to_be_run"
  [[ $EUID -eq 0 ]] || die "system packages are missing. Run this, then the same make command again:
  ${no_sshd:+sudo sh -c '$no_sshd' && }sudo apt-get update && sudo apt-get install --no-install-recommends ${missing[*]}"

  say "installing system packages: ${missing[*]}"
  # The lab wants the program only: with this file, Debian's package starts no sshd on the machine, now or later.
  sh -c "$no_sshd"
  log=$(mktemp)
  if ! { apt-get update && DEBIAN_FRONTEND=noninteractive \
    apt-get install --yes --no-install-recommends "${missing[@]}"; } >"$log" 2>&1 </dev/null; then
    tail -n 20 "$log" >&2
    die "apt-get could not install: ${missing[*]} (the whole log is in $log). Where python3.11 is not in the
  distribution, install a Python 3.11 in another way and run: $make_target PYTHON=/path/to/python3.11"
  fi
  rm "$log"
  hash -r
  mapfile -t missing < <(missing_system_packages)
  [[ ${#missing[@]} -eq 0 ]] || die "still missing after installing: ${missing[*]}. If $(find_python) is not the
  distribution's Python, reinstall it with its headers and ensurepip, or choose another: $make_target PYTHON=..."
}

make_venv() {
  local python
  python=$(find_python)
  # `unfinished` stands while pip changes the environment. Where it is left over, pip was interrupted, and what a half
  # installed package looks like is anybody's guess.
  if [[ -e $unfinished ]]; then
    say "an earlier run was interrupted; making $venv again"
    rm -rf "$venv"
  elif [[ -e $venv ]] && ! "$venv/bin/python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' \
    2>/dev/null; then
    say "$venv does not hold a working Python 3.11; making it again"
    rm -rf "$venv"
  fi
  [[ -e $venv ]] && "$venv/bin/python" -m pip --version >/dev/null 2>&1 && return
  say "making $venv with $python"
  mkdir -p "$venv"
  touch "$unfinished"
  "$python" -m venv "$venv"
}

install_cpu_torch() {
  local pin errors
  pin=$(grep '^torch==' "$requirements/horovod-build.txt")
  # Asked for by its name first: plain `torch==X` is a CUDA build of several GB on most x86-64 machines, and
  # where pip is offered both, `+cu130` sorts after `+cpu`.
  errors=$(quiet_pip install --no-deps "$pin+cpu" 2>&1) && return
  [[ $errors == *"No matching distribution"* ]] || die "pip could not install $pin+cpu:
$errors"
  say "pip is not offered a CPU build of torch; taking the default one (docs/setup.md: A CPU build of torch)"
}

packages_digest() {
  {
    "$venv/bin/python" -c 'import sys; print(sys.version, sys.prefix)'
    sha256sum "$requirements"/*.txt tools/env.sh tools/build_horovod.py
  } | sha256sum
}

install_packages() {
  local digest wheel
  digest=$(packages_digest)
  [[ ! -e $unfinished && $digest == "$(cat "$packages_stamp" 2>/dev/null)" ]] && return
  say "installing the pinned packages (the first time: several minutes, mostly downloads)"
  touch "$unfinished"
  rm -f "$packages_stamp"
  install_cpu_torch
  quiet_pip install -r "$requirements/horovod-build.txt" -r "$requirements/dev.txt" -c "$requirements/constraints.txt"
  [[ ! -e $requirements/no-deps.txt ]] || quiet_pip install --no-deps -r "$requirements/no-deps.txt"
  rm "$unfinished"

  say "Horovod for these versions of torch and TensorFlow, kept in $cache"
  mkdir -p "$cache" || die "cannot write to the cache $cache; set HOROVOD_DGC_CACHE to another folder"
  wheel=$("$venv/bin/python" tools/build_horovod.py --cache "$cache" --requirements "$requirements/horovod-build.txt")
  touch "$unfinished"
  quiet_pip install --no-deps --force-reinstall "$wheel"
  rm "$unfinished"
  check_horovod
  echo "$digest" >"$packages_stamp"
}

check_horovod() {
  local report feature
  report=$("$venv/bin/horovodrun" --check-build 2>&1) || die "horovodrun --check-build failed:
$report"
  for feature in PyTorch TensorFlow MPI Gloo; do
    [[ $report == *"[X] $feature"* ]] || die "Horovod was built without $feature:
$report"
  done
}

# -P: the installed package must work, not the one in this folder.
is_built() {
  "$venv/bin/python" -P -c 'import pathlib, horovod_dgc._core
assert list(pathlib.Path(horovod_dgc.__file__).parent.glob("tensorflow/_operations.*.so"))' &&
    { [[ -n $name ]] || "$venv/bin/python" -P -c 'import horovod_dgc._cuda'; }
}

install_package() {
  local digest copy=$venv/source sources=(csrc setup.py pyproject.toml MANIFEST.in)
  # In editable mode, Python's files are read from the tree.
  [[ -z $name ]] || sources+=(horovod_dgc)
  digest=$(find "${sources[@]}" -type f -not -path 'csrc/tests/*' -not -name '*.so' -not -name '*.pyc' -print0 |
    sort -z | xargs -0 sha256sum | cat "$packages_stamp" - | sha256sum)
  [[ $digest == "$(cat "$package_stamp" 2>/dev/null)" ]] && is_built 2>/dev/null && return
  say "building the C++ core, the CUDA kernels and the TensorFlow operations, and installing horovod_dgc into $venv"
  rm -f "$package_stamp"
  # The second environment is there for TensorFlow.
  export HOROVOD_DGC_WITH_TENSORFLOW=1 HOROVOD_DGC_WITH_CUDA=$([[ -n $name ]] && echo 0 || echo 1)
  if [[ -z $name ]]; then
    quiet_pip install --no-deps --no-build-isolation --editable .
  else
    # Compiled files in the tree are .venv's: an extension built against one environment's packages does not fit
    # another's. So this one is built from a copy without any.
    rm -rf "$copy"
    mkdir "$copy"
    cp -r "${sources[@]}" "$copy"
    find "$copy" -name '*.so' -delete
    quiet_pip install --no-deps --no-build-isolation --force-reinstall "$copy"
    rm -rf "$copy"
  fi
  is_built
  echo "$digest" >"$package_stamp"
}

[[ $extra =~ ^(|lab|containers)$ ]] || die "there is no --$extra: --lab or --containers"
[[ -d $requirements ]] || die "there is no environment $name: no folder $requirements"
install_system_packages
exec 9>"$venv.lock"
flock --nonblock 9 || {
  say "another run of $make_target is at work here; waiting for it"
  flock 9
}
make_venv
install_packages
install_package
say "ready: $venv"
