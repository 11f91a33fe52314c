#!/usr/bin/env bash
# Prepares what the Makefile's targets need: system packages, an environment, pinned packages, the package itself and
# Horovod. Does only what is missing, so that it can be run before every target, and goes on where it was interrupted.
# Usage: env.sh [--demo|--lab|--containers] [NAME]. Without NAME the environment is .venv, made from requirements/*.txt;
# with it .venv-NAME, made from requirements/NAME/*.txt.
# --demo is .venv with no more than `make demo` needs: PyTorch, and Horovod for PyTorch alone.
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
again="make env${name:+-$name}"
[[ $extra != demo ]] || again="make demo"
# An environment with everything serves the demo, too.
profile=all
[[ $extra != demo ]] || profile=demo
packages_stamp=$venv/stamp-packages
package_stamp=$venv/stamp-horovod_dgc
horovod_stamp=$venv/stamp-horovod
unfinished=$venv/unfinished
cache=${HOROVOD_DGC_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/horovod_dgc}
export HOROVOD_DGC_CACHE=$cache CCACHE_DIR=$cache/ccache

duration() { printf '%d:%02d' $(($1 / 60)) $(($1 % 60)); }
say() { printf 'env: %s  %s\n' "$(duration $SECONDS)" "$*"; }
die() {
  printf 'env: error: %s\n' "$*" >&2
  exit 1
}

ticker=
trap '[[ -z $ticker ]] || kill $ticker 2>/dev/null' EXIT

# Runs a command, and says now and then that it is still under way: under_way TITLE SECONDS LOG COMMAND...
# SECONDS: what it usually takes on two cores. LOG: the file for what the command prints.
under_way() {
  local title=$1 usually=$2 log=$3 begun=$SECONDS status=0
  shift 3
  say "$title (usually $(duration "$usually"))"
  while sleep 15; do say "  still at it: $(duration $((SECONDS - begun)))"; done &
  ticker=$!
  "$@" >"$log" 2>&1 </dev/null || status=$?
  kill $ticker 2>/dev/null
  wait $ticker 2>/dev/null || true
  ticker=
  return $status
}

# pip_install TITLE SECONDS ARGUMENTS...: what goes wrong is said in a sentence, and the next run goes on from there.
pip_install() {
  local log=$venv/pip.log
  touch "$unfinished"
  if ! under_way "$1" "$2" "$log" "$venv/bin/python" -m pip install -q "${@:3}"; then
    # pip ended by itself: what it has not installed, it has left alone.
    rm -f "$unfinished"
    pip_failed "$log"
  fi
  rm "$unfinished"
}

pip_failed() {
  ! grep -q "No space left on device" "$1" || die "the disk is full: free some GB, then run $again once more"
  ! grep -qE "Max retries|NewConnectionError|Connection|timed out|Temporary failure|Name or service|from versions: none" "$1" \
    || die \
    "pip does not reach its package index: check the network, or set PIP_INDEX_URL, then run $again once more; it goes
  on where it stopped. pip says: $(grep -E '^ERROR' "$1" | tail -n 1)"
  die "pip could not install the pinned packages:
$(tail -n 8 "$1")"
}

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
  command -v g++ >/dev/null || echo g++
  [[ $extra != demo ]] || return 0
  command -v ccache >/dev/null || echo ccache
  command -v ssh >/dev/null || echo openssh-client
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
    die "PYTHON=$PYTHON is not a Python 3.11, which the pinned packages are for"
  fi
  command -v apt-get >/dev/null ||
    die "install what these Debian packages hold, then run $again once more: ${missing[*]}"
  no_sshd=
  [[ " ${missing[*]} " != *" openssh-server "* ]] || no_sshd="mkdir -p /etc/ssh && touch /etc/ssh/sshd_not_to_be_run"
  [[ $EUID -eq 0 ]] || die "system packages are missing. Run this, then $again once more:
  ${no_sshd:+sudo sh -c '$no_sshd' && }sudo apt-get update && sudo apt-get install --no-install-recommends ${missing[*]}"

  # The lab wants the program only: with this file, Debian's package starts no sshd on the machine, now or later.
  sh -c "$no_sshd"
  log=$(mktemp)
  if ! under_way "installing system packages: ${missing[*]}" 30 "$log" apt_install "${missing[@]}"; then
    tail -n 20 "$log" >&2
    die "apt-get could not install: ${missing[*]} (the whole log is in $log). Check the network and the disk. Where
  python3.11 is not in the distribution, install a Python 3.11 in another way and run: $again PYTHON=/path/to/python3.11"
  fi
  rm "$log"
  hash -r
  mapfile -t missing < <(missing_system_packages)
  [[ ${#missing[@]} -eq 0 ]] || die "still missing after installing: ${missing[*]}. If $(find_python) is not the
  distribution's Python, reinstall it with its headers and ensurepip, or choose another: $again PYTHON=..."
}

apt_install() {
  apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends "$@"
}

make_venv() {
  local python
  python=$(find_python)
  # `unfinished` stands while pip changes the environment. Where it is left over, pip was killed, and what a half
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
  rm "$unfinished"
}

# The files of pinned packages of a profile, all or demo.
pins() {
  local file
  for file in base.txt $([[ $1 == demo ]] || echo dev.txt no-deps.txt); do
    [[ ! -e $requirements/$file ]] || echo "$file"
  done
}

packages_digest() {
  local files
  mapfile -t files < <(pins "$1")
  {
    "$venv/bin/python" -c 'import sys; print(sys.version, sys.prefix)'
    cat "$requirements/constraints.txt" "${files[@]/#/$requirements/}"
  } | sha256sum
}

package_digest() {
  find csrc horovod_dgc/building setup.py pyproject.toml MANIFEST.in -type f -not -path 'csrc/tests/*' \
    -not -name '*.pyc' -print0 | sort -z | xargs -0 sha256sum | cat - "$packages_stamp" <(echo "$1") | sha256sum
}

horovod_digest() {
  cat horovod_dgc/building/horovod.py "$packages_stamp" <(echo "$1") | sha256sum
}

# is_done STAMP DIGEST: whether what the function DIGEST tells of this profile, or of the one with everything, is there.
is_done() {
  [[ -e $1 && ! -e $unfinished ]] || return 1
  [[ $(cat "$1") == "$("$2" "$profile")" || $(cat "$1") == "$("$2" all)" ]]
}

enough_space() {
  local wanted=5 left
  [[ $profile == all ]] || wanted=3
  left=$(df -Pk . | awk 'NR == 2 { print int($4 / 1048576) }')
  ((left >= wanted)) || die "the disk of $PWD has $left GB left, and $venv takes up to $wanted: free some, then run $again"
}

install_cpu_torch() {
  local pin
  pin=$(grep '^torch==' "$requirements/base.txt")
  # Asked for by its name first: plain `torch==X` is a CUDA build of several GB on most x86-64 machines, and
  # where pip is offered both, `+cu130` sorts after `+cpu`.
  "$venv/bin/python" -c "import importlib.metadata as m, sys; sys.exit(m.version('torch') != '${pin#torch==}+cpu')" \
    2>/dev/null && return
  touch "$unfinished"
  if under_way "installing PyTorch, a CPU build (0.2 GB)" 30 "$venv/pip.log" \
    "$venv/bin/python" -m pip install -q --no-deps "$pin+cpu"; then
    rm "$unfinished"
    return
  fi
  rm "$unfinished"
  grep -q "No matching distribution" "$venv/pip.log" || pip_failed "$venv/pip.log"
  say "pip is not offered a CPU build of torch; taking the default one (docs/setup.md: A CPU build of torch)"
}

install_packages() {
  local files title seconds options=()
  ! is_done "$packages_stamp" packages_digest || return 0
  enough_space
  rm -f "$packages_stamp"
  install_cpu_torch
  mapfile -t files < <(pins "$profile")
  for file in "${files[@]}"; do
    [[ $file == no-deps.txt ]] || options+=(-r "$requirements/$file")
  done
  title="installing what builds and draws (0.1 GB)" seconds=20
  [[ $profile == demo ]] || title="installing TensorFlow, compilers, tools of the tests and all else (1 GB)" seconds=120
  pip_install "$title" "$seconds" -c "$requirements/constraints.txt" "${options[@]}"
  [[ " ${files[*]} " != *" no-deps.txt "* ]] ||
    pip_install "installing tf_keras" 5 --no-deps -r "$requirements/no-deps.txt"
  packages_digest "$profile" >"$packages_stamp"
}

# -P: the installed package must work, not the one in this folder.
is_built() {
  local parts=()
  [[ $profile == demo ]] || parts=(operations $([[ -n $name ]] || echo kernels))
  "$venv/bin/python" -P - "${parts[@]}" <<'PYTHON'
import importlib.metadata, pathlib, sys
import horovod_dgc._core
folder = pathlib.Path(horovod_dgc.__file__).parent
files = {"operations": "tensorflow/_operations.tf{}-*.so", "kernels": "_cuda.*.so"}
for part in sys.argv[1:]:
    tensorflow = importlib.metadata.version("tensorflow-cpu")
    assert list(folder.glob(files[part].format(tensorflow))), f"there are no {part}"
PYTHON
}

install_package() {
  local title="compiling horovod_dgc's core" seconds=40
  ! { is_done "$package_stamp" package_digest && is_built 2>/dev/null; } || return 0
  rm -f "$package_stamp"
  export HOROVOD_DGC_WITH_TENSORFLOW=1 HOROVOD_DGC_WITH_CUDA=1
  if [[ $profile == demo ]]; then
    export HOROVOD_DGC_WITH_TENSORFLOW=0 HOROVOD_DGC_WITH_CUDA=0
  elif [[ -n $name ]]; then
    # The second environment is there for TensorFlow.
    export HOROVOD_DGC_WITH_CUDA=0
    title+=" and its TensorFlow operations" seconds=60
  else
    title+=", its CUDA kernels and its TensorFlow operations" seconds=120
  fi
  pip_install "$title" "$seconds" --no-deps --no-build-isolation --editable .
  is_built || die "what has just been compiled does not load, see above: docs/setup.md, Troubleshooting"
  package_digest "$profile" >"$package_stamp"
}

install_horovod() {
  local features=(PyTorch MPI Gloo)
  ! is_done "$horovod_stamp" horovod_digest || return 0
  rm -f "$horovod_stamp"
  say "Horovod, compiled for what is installed (usually $([[ $profile == demo ]] && duration 110 || duration 240))"
  "$venv/bin/python" -P -m horovod_dgc build horovod --mpi --no-dependencies
  [[ $profile == demo ]] || features+=(TensorFlow)
  check_horovod "${features[@]}"
  horovod_digest "$profile" >"$horovod_stamp"
}

check_horovod() {
  local report feature
  report=$("$venv/bin/horovodrun" --check-build 2>&1) || die "horovodrun --check-build failed:
$report"
  for feature in "$@"; do
    [[ $report == *"[X] $feature"* ]] || die "Horovod was built without $feature:
$report"
  done
}

[[ $extra =~ ^(|demo|lab|containers)$ ]] || die "there is no --$extra: --demo, --lab or --containers"
[[ -d $requirements ]] || die "there is no environment $name: no folder $requirements"
install_system_packages
mkdir -p "$cache" 2>/dev/null && [[ -w $cache ]] ||
  die "cannot write to the cache $cache; set HOROVOD_DGC_CACHE to another folder"
exec 9>"$venv.lock"
flock --nonblock 9 || {
  say "another run of $again is at work here; waiting for it"
  flock 9
}
make_venv
install_packages
install_package
install_horovod
say "ready: $venv"
