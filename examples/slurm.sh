#!/bin/bash
# Pre-training on two machines of eight GPUs under SLURM: sbatch examples/slurm.sh STORE RUN
# SIGTERM comes three minutes before the limit and saves the run; the same command, sent in again, goes on. Not run yet: no
# cluster was at hand.
#SBATCH --job-name=melmask
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@180
#SBATCH --requeue
set -euo pipefail
store=$1
run=$2  # on a file system that every machine sees

first_machine=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun --cpus-per-task="$SLURM_CPUS_PER_TASK" torchrun --shutdown-timeout 120 \
    --nnodes "$SLURM_NNODES" --nproc-per-node 8 \
    --rdzv-backend c10d --rdzv-endpoint "$first_machine:29500" --rdzv-id "$SLURM_JOB_ID" \
    -m melmask pretrain "$store" --out "$run" --recipe msm_mae_512 data.batch_size=1024
