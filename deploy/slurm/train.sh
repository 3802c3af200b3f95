#!/bin/bash
# Train on all GPUs of several nodes; pre-empted or at its time limit, the job saves, goes back into the queue and resumes.
#   sbatch --nodes=2 deploy/slurm/train.sh /shared/data/manifest.parquet convnext_base /shared/runs/large
# The three paths are seen by all nodes; .venv, or what PATH finds first, has listing-vision[train].
#SBATCH --job-name=listing-vision-training
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=96
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@150
set -euo pipefail

manifest=$1 recipe=$2 run=$3
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)
trap 'kill -USR1 "$!"' USR1 TERM

srun python -m training.launch --nnodes="$SLURM_JOB_NUM_NODES" --nproc-per-node=gpu --max-restarts=0 \
    --signals-to-handle=SIGTERM,SIGINT,SIGUSR1 --shutdown-timeout=120 \
    --rdzv-backend=c10d --rdzv-id="$SLURM_JOB_ID" --rdzv-endpoint="$first:29400" \
    -m training "$manifest" --recipe "$recipe" --run-folder "$run" &
worker=$!

# `wait` also returns after a signal.
while kill -0 "$worker" 2>/dev/null; do wait "$worker" || true; done
status=0
wait "$worker" || status=$?
if [ "$status" -eq 75 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
