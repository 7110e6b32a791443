#!/bin/sh
# Trains on all hosts of a Cloud TPU slice, and fetches the run.
#
#   scripts/tpu_vm.sh [options] create                   create a TPU
#   scripts/tpu_vm.sh [options] install                  copy the last commit to every host and make its environment
#   scripts/tpu_vm.sh [options] run COMMAND ...          run a command on every host at once
#   scripts/tpu_vm.sh [options] fetch RUN [FOLDER]       copy a run from host 0 here (into runs/)
#   scripts/tpu_vm.sh [options] delete                   delete the TPU; files that were not fetched are lost
#
#   --name=pneumojax          name of the TPU
#   --zone=ZONE               zone (default: that of gcloud's configuration)
#   --type=v5litepod-8        accelerator type; v5litepod-16 and larger types have several hosts
#   --version=v2-alpha-tpuv5-lite    software version of the TPU
#   --spot                    cheaper, but it can be stopped at any time; the same run command resumes the training
#   --dry_run                 print the commands without running them
#
# For example, with the data set prepared on a bucket or disk that all hosts mount at /mnt/shared:
#
#   scripts/tpu_vm.sh create && scripts/tpu_vm.sh install
#   scripts/tpu_vm.sh run scripts/run experiments/train.py --multihost --loader=stream --dataset=kermany \
#     --data_dir=/mnt/shared/data --workdir=/mnt/shared/runs/tpu
#   scripts/tpu_vm.sh fetch /mnt/shared/runs/tpu && scripts/tpu_vm.sh delete
#
# A slice with one host needs neither --multihost nor a shared folder. A command ends if the connection to its hosts
# breaks. The same command then resumes the training from its last checkpoint. This script needs gcloud, logged in and
# with a project.
set -eu

root=$(CDPATH= cd -- "$(dirname -- "$0")/.." && pwd)
name=pneumojax zone='' type=v5litepod-8 version=v2-alpha-tpuv5-lite spot='' dry_run=''

fail() {
  echo "tpu_vm.sh: $1" >&2
  exit 1
}

usage() {
  sed -n '2,/^set -eu/{/^set -eu/d;s/^# \{0,1\}//;p;}' "$0"
}

# Prints a word, quoted for a shell.
quote() {
  case $1 in
    '' | *[!A-Za-z0-9_./:=,@%+-]*) printf "'%s'" "$(printf %s "$1" | sed "s/'/'\\\\''/g")" ;;
    *) printf %s "$1" ;;
  esac
}

quote_all() {
  line=''
  for word; do
    line="$line${line:+ }$(quote "$word")"
  done
  printf %s "$line"
}

do_or_tell() {
  if [ "$dry_run" ]; then
    quote_all "$@"
    echo
  else
    "$@"
  fi
}

# tpu ACTION ARGUMENT ...
tpu() {
  do_or_tell gcloud compute tpus tpu-vm "$@" ${zone:+"--zone=$zone"}
}

on_every_host() {
  tpu ssh "$name" --worker=all "--command=$1"
}

while [ $# -gt 0 ]; do
  case $1 in
    --name=?*) name=${1#*=} ;;
    --zone=?*) zone=${1#*=} ;;
    --type=?*) type=${1#*=} ;;
    --version=?*) version=${1#*=} ;;
    --spot) spot=yes ;;
    --dry_run) dry_run=yes ;;
    --help | -h)
      usage
      exit 0
      ;;
    -*) fail "there is no option $1 (options with a value are written --name=VALUE). See --help." ;;
    *) break ;;
  esac
  shift
done

[ $# -gt 0 ] || fail "say what to do: create, install, run, fetch or delete. See --help."
action=$1
shift
case $action in
  create | install | delete) [ $# -eq 0 ] || fail "$action takes nothing after it, and got $1. Options stand before $action." ;;
  run) [ $# -gt 0 ] || fail "say what to run, for example: scripts/tpu_vm.sh run scripts/run experiments/train.py" ;;
  fetch) [ $# -eq 1 ] || [ $# -eq 2 ] || fail "fetch takes the folder of a run on host 0, and the folder here to put it in." ;;
  *) fail "there is no action $action: create, install, run, fetch or delete. See --help." ;;
esac
[ "$dry_run" ] || command -v gcloud >/dev/null 2>&1 || fail "gcloud is not installed. Install the Google Cloud CLI, or look at the commands with --dry_run."

case $action in
  create)
    tpu create "$name" "--accelerator-type=$type" "--version=$version" ${spot:+--spot}
    ;;
  install)
    archive=${TMPDIR:-/tmp}/pneumojax.tar.gz
    do_or_tell git -C "$root" archive --format=tar.gz --prefix=pneumojax/ "--output=$archive" HEAD
    tpu scp "$archive" "$name:pneumojax.tar.gz" --worker=all
    on_every_host 'tar -xzf pneumojax.tar.gz'
    # uv also installs a Python, because that of the hosts is 3.10, which is too old.
    on_every_host 'python3 -m pip install --user --quiet uv'
    on_every_host 'cd pneumojax && PATH=$HOME/.local/bin:$PATH && scripts/run python --version && uv pip install --python .venv/bin/python "jax[tpu]"'
    ;;
  run)
    on_every_host "cd pneumojax && $(quote_all "$@")"
    ;;
  fetch)
    case $1 in
      /*) from=$1 ;;
      *) from=pneumojax/$1 ;;
    esac
    to=${2:-runs}
    do_or_tell mkdir -p "$to"
    tpu scp --recurse "$name:$from" "$to" --worker=0
    ;;
  delete)
    tpu delete "$name" --quiet
    ;;
esac
