#!/usr/bin/env bash
# Lets containers of one cluster log in to each other, then does what it is told:
#   worker           wait for jobs, that is, run sshd
#   head COMMAND...  run sshd beside COMMAND, and make the cluster's key if there is none
#   COMMAND...       run COMMAND alone
# The head waits until it can log in to every one of CLUSTER_HOSTS, names with blanks between them, if there are any.
# The cluster's key pair is in the folder CLUSTER_KEYS (/cluster), shared by all its containers: made there by the head,
# or put there beforehand as id_*, which may be read-only.
set -euo pipefail
keys=${CLUSTER_KEYS:-/cluster}
seconds=${CLUSTER_SECONDS:-60}
ssh=$HOME/.ssh

die() {
  printf 'entrypoint: error: %s\n' "$*" >&2
  exit 1
}

private_keys() { find -L "$keys" -maxdepth 1 -name 'id_*' ! -name '*.pub' -type f; }

make_key() {
  [[ -z $(private_keys) ]] || return 0
  [[ -w $keys ]] || die "there is no key id_* in $keys, and the head cannot write one there"
  rm -rf "$keys/new"
  mkdir -m 700 "$keys/new"
  ssh-keygen -q -t ed25519 -N '' -C cluster -f "$keys/new/id_ed25519"
  # In one step: a worker must not find half a key.
  mv "$keys/new/id_ed25519" "$keys/id_ed25519"
  rm -rf "$keys/new"
}

wait_for_key() {
  local deadline=$((SECONDS + seconds))
  until [[ -n $(private_keys) ]]; do
    ((SECONDS < deadline)) ||
      die "no key id_* in $keys after $seconds s: mount the folder that the head's key is in, or a key of your own"
    sleep 0.1
  done
}

# ssh wants keys that are the user's own and nobody else's to read, which those of a mounted secret are not.
take_key() {
  local key
  mkdir -p -m 700 "$ssh"
  : >"$ssh/authorized_keys"
  while read -r key; do
    install -m 600 "$key" "$ssh/${key##*/}"
    ssh-keygen -y -f "$ssh/${key##*/}" >>"$ssh/authorized_keys"
  done < <(private_keys)
  [[ -e $ssh/host_key ]] || ssh-keygen -q -t ed25519 -N '' -C host -f "$ssh/host_key"
}

wait_for_hosts() {
  local deadline=$((SECONDS + seconds)) host
  for host in ${CLUSTER_HOSTS:-}; do
    until ssh -o ConnectTimeout=5 "$host" true 2>/dev/null; do
      ((SECONDS < deadline)) || die "no login to $host after $seconds s: $(ssh -o ConnectTimeout=5 "$host" true 2>&1)"
      sleep 0.1
    done
  done
}

sshd=(/usr/sbin/sshd -D -e -f /etc/ssh/sshd_horovod_config)
case ${1:-} in
  worker)
    wait_for_key
    take_key
    exec "${sshd[@]}"
    ;;
  head)
    shift
    [[ $# -gt 0 ]] || die "head needs a command"
    make_key
    take_key
    "${sshd[@]}" &
    wait_for_hosts
    exec "$@"
    ;;
  '') die "give worker, head COMMAND..., or a command" ;;
  *) exec "$@" ;;
esac
