#!/usr/bin/env bash
# Fills the image's Python environment.
# Usage: install_packages.sh VENV WHEELS FRAMEWORKS, for Horovod and all that it and the examples import;
# then: install_packages.sh --package VENV FRAMEWORKS, for horovod_dgc, from the current folder.
# ACCELERATOR in the environment is cpu, the default, or cuda.
set -euo pipefail
export PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
build=/opt/build
accelerator=${ACCELERATOR:-cpu}

die() {
  echo "$*" >&2
  exit 1
}

case $accelerator in
  cpu) requirements=requirements nccl=() ;;
  cuda) requirements=requirements/cuda nccl=(--nccl) ;;
  *) die "ACCELERATOR is cpu or cuda, not $accelerator" ;;
esac
pins=(-c "$requirements/base.txt" -c requirements/dev.txt -c "$requirements/constraints.txt")

pip() { "$1/bin/python" -m pip "${@:2}" --quiet; }

# Asked for by its name first: plain `torch==X` is a CUDA build of several GB on most x86-64 machines.
install_torch() {
  local pin
  # There the default build is wanted, and its pin fits no other.
  [[ $accelerator == cpu ]] || return 0
  pin=$(grep '^torch==' requirements/base.txt)
  pip "$1" install --no-deps "$pin+cpu" 2>/dev/null || echo "no CPU build of torch is to be had; taking the default one"
}

# install_horovod VENV WHEELS FRAMEWORK...
install_horovod() {
  local venv=$1 wheels=$2 wheel frameworks=("${@:3}") selected=()
  [[ " ${frameworks[*]} " != *" torch "* ]] || selected+=(--framework torch)
  [[ " ${frameworks[*]} " != *" tensorflow-cpu "* ]] || selected+=(--framework tensorflow)
  wheel=$(find "$wheels" -name 'horovod-*.whl' -print -quit)
  if [[ -z $wheel ]]; then
    python3.11 -m venv "$build"
    install_torch "$build"
    pip "$build" install "${pins[@]}" -r "$requirements/base.txt" "${frameworks[@]}"
    wheel=$(PYTHONPATH=alone "$build/bin/python" -m horovod_dgc.building.horovod_command --wheel-only --mpi \
      --cache /tmp/horovod "${selected[@]}" "${nccl[@]}")
    rm -rf "$build"
  fi
  pip "$venv" install --no-deps "$wheel"
  # A wheel's name does not say whether it is one for GPUs.
  [[ $accelerator == cpu || $("$venv/bin/horovodrun" --check-build) == *"[X] NCCL"* ]] ||
    die "$wheel has no NCCL, or not for this torch"
}

install_packages() {
  local venv=$1 wheels=$2 frameworks
  read -ra frameworks <<<"$3"
  [[ $accelerator == cpu || $3 == torch ]] || die "for GPUs FRAMEWORKS can only be torch, not $3"
  python3.11 -m venv "$venv"
  [[ " $3 " != *" torch "* ]] || install_torch "$venv"
  pip "$venv" install "${pins[@]}" "${frameworks[@]}" \
    numpy cffi click cloudpickle packaging psutil pyyaml rich safetensors
  install_horovod "$venv" "$wheels" "${frameworks[@]}"
}

install_package() {
  local venv=$1 with_tensorflow=0 with_cuda=0 compilers=()
  [[ " $2 " != *" tensorflow-cpu "* ]] || with_tensorflow=1
  if [[ $accelerator == cuda ]]; then
    with_cuda=1
    compilers=(nvidia-cuda-cccl nvidia-cuda-crt nvidia-cuda-nvcc nvidia-nvvm)
  fi
  pip "$venv" install "${pins[@]}" pybind11 setuptools wheel "${compilers[@]}"
  HOROVOD_DGC_WITH_TENSORFLOW=$with_tensorflow HOROVOD_DGC_WITH_CUDA=$with_cuda \
    pip "$venv" install --no-deps --no-build-isolation .
  # Of use to the build alone.
  pip "$venv" uninstall --yes pybind11 wheel "${compilers[@]}"
  find "$venv" -name __pycache__ -type d -prune -exec rm -rf {} +
}

if [[ $1 == --package ]]; then
  install_package "${@:2}"
else
  install_packages "$@"
fi
