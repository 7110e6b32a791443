#!/bin/sh
#SBATCH --job-name=pneumojax
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --signal=TERM@120
#SBATCH --output=slurm-%j.log
#
# Trains on several hosts under Slurm: one process for each GPU, and every GPU of a host visible to all its processes.
#
#   sbatch scripts/slurm.sh --flagfile=experiments/presets/resnet.flags --dataset=kermany --batch_size=256 \
#     --workdir=/shared/runs/resnet
#
# Options before the script's name replace those above: sbatch --nodes=1 --ntasks-per-node=2 --gpus-per-node=2 ...
#
# Submit it from the project's folder. All hosts must share this folder, the data and the workdir. Make the environment
# first: scripts/run pip install 'jax[cuda13]'. The batch is sharded over all GPUs. Two minutes before its time limit, the
# run saves a checkpoint and ends. If the job is submitted again, or requeued by Slurm, it resumes on the GPUs that it
# then has.
set -eu

if [ -z "${SLURM_JOB_ID:-}" ]; then
  echo "slurm.sh: this is a job. Submit it: sbatch scripts/slurm.sh --workdir=DIR ..." >&2
  exit 1
fi
case " $*" in
  *" --workdir="*) ;;
  *)
    echo "slurm.sh: name a folder that all hosts share: --workdir=DIR" >&2
    exit 1
    ;;
esac
cd "$SLURM_SUBMIT_DIR"
[ -x scripts/run ] || {
  echo "slurm.sh: $SLURM_SUBMIT_DIR is not the project's folder. Submit from there: sbatch scripts/slurm.sh ..." >&2
  exit 1
}
# JAX finds the processes through Slurm's variables. If a process dies, srun ends the others.
exec srun --kill-on-bad-exit=1 scripts/run experiments/train.py --multihost --loader=stream "$@"
