#!/bin/bash
# One process of timm's train.py, from the last checkpoint where there is one: the same command starts a training and
# goes on with it, after a kill, a requeue or a restart by torchrun. train.py fails on a --resume file that is missing.
#   train/imagenet_worker.sh OUTPUT EXPERIMENT --config train/recipes/CONFIG.yaml --data-dir /imagenet ...
#   torchrun --nproc-per-node 8 --max-restarts 3 --no-python train/imagenet_worker.sh OUTPUT EXPERIMENT ...
# TIMM_SCRIPTS is a clone of huggingface/pytorch-image-models. Checkpoints are OUTPUT/EXPERIMENT/last.pth.tar, of each
# epoch's end. train.py's --recovery-interval saves within an epoch, but it resumes such a file at the next epoch.
set -euo pipefail
output=$1 experiment=$2
shift 2
last="$output/$experiment/last.pth.tar"
resume=()
if [ -f "$last" ]; then
    resume=(--resume "$last")
fi
exec python -m timm_preact run train.py --output "$output" --experiment "$experiment" "${resume[@]}" "$@"
