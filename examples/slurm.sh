#!/bin/bash
# Pre-training on two machines of eight GPUs under SLURM:
#   sbatch examples/slurm.sh STORE RUN [--recipe msm_mae_512 data.batch_size=1024 ...]
# SLURM sends SIGTERM three minutes before the time limit, and the run saves and ends. Submit the same command again to
# resume. If a machine fails, SLURM submits the job again by itself (--requeue). Options of sbatch change the machines:
#   sbatch --nodes=4 examples/slurm.sh STORE RUN
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
run=$2  # must be on a file system that every machine sees
shift 2
(($#)) || set -- --recipe msm_mae_512 data.batch_size=1024

first_machine=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
port=$((20000 + SLURM_JOB_ID % 10000))  # two jobs on one machine get two ports
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=120  # seconds; a large model takes long to save, and PyTorch before 2.12 allows 30
srun --cpus-per-task="$SLURM_CPUS_PER_TASK" torchrun \
    --nnodes "$SLURM_NNODES" --nproc-per-node "$SLURM_GPUS_ON_NODE" \
    --rdzv-backend c10d --rdzv-endpoint "$first_machine:$port" --rdzv-id "$SLURM_JOB_ID" \
    -m melmask pretrain "$store" --out "$run" "$@"
