#!/bin/bash
#SBATCH --job-name=quickstart
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --exclusive
#SBATCH --mail-user=ada@example.org
#SBATCH --mail-type=END,FAIL,REQUEUE
#SBATCH --comment=collapse
#SBATCH --nice=100
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@60
#SBATCH --chdir=/home/ada/collapse
#SBATCH --output='/shared/my runs/it'"'"'s here/%j.log'

# Until there is somebody to save work, a signal is only noted: by itself it would end the job for good.
trap 'export HARNESS_SIGNALLED=1' USR1

# The store is shared: what this job writes, others of the group may go on with.
umask 0002

# The lab's environment, from the site file and --setup.
module load cuda/12.8
ulimit -l unlimited

export HF_HOME=/shared/hf
export HF_HUB_OFFLINE=1
export WANDB_MODE=offline
export NCCL_SOCKET_IFNAME=ib0
export GREETING='hello there; rm -rf /'

# Ray opens many files and starts many threads.
ulimit -n 65535 2>/dev/null || ulimit -n "$(ulimit -Hn)"
ulimit -u "$(ulimit -Hu)" 2>/dev/null || true

trap '' USR1
# This process becomes the one that SLURM signals; it runs the grid and decides whether the job is requeued.
exec /shared/venv/bin/python -P -m harness.launch.batch --folder '/shared/my runs/it'"'"'s here' --max-requeues 3 \
    --signal-s 60 -- \
    /shared/venv/bin/python -P -m harness run '/shared/my runs/it'"'"'s here/config.yaml' --root '/shared/my runs' --slurm
