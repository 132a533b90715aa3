#!/bin/bash
#SBATCH --job-name=quickstart
#SBATCH --partition=gpu,preempt
#SBATCH --account=collapse
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --gpus-per-node=a100:8
#SBATCH --mem=500G
#SBATCH --time=1-00:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@60
#SBATCH --chdir=/home/ada/collapse
#SBATCH --output=/shared/runs/experiments/quickstart/slurm/20261121-120000-abcdef/%j.log

# Until there is somebody to save work, a signal is only noted: by itself it would end the job for good.
trap 'export HARNESS_SIGNALLED=1' USR1

# Compute nodes have no network: models and data come from the cache that `harness fetch` fills, W&B is written by `harness sync`.
export HF_HOME=/shared/hf
export HF_HUB_OFFLINE=1
export WANDB_MODE=offline

# Ray opens many files and starts many threads.
ulimit -n 65535 2>/dev/null || ulimit -n "$(ulimit -Hn)"
ulimit -u "$(ulimit -Hu)" 2>/dev/null || true

trap '' USR1
# This process becomes the one that SLURM signals; it runs the grid and decides whether the job is requeued.
exec /shared/venv/bin/python -P -m harness.launch.batch --folder /shared/runs/experiments/quickstart/slurm/20261121-120000-abcdef --max-requeues 50 \
    --signal-s 60 -- \
    /shared/venv/bin/python -P -m harness run /shared/runs/experiments/quickstart/slurm/20261121-120000-abcdef/config.yaml --root /shared/runs --slurm
