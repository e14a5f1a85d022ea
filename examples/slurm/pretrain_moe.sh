#!/bin/bash
# Pretrains a mixture of experts:  sbatch [--nodes=16] [--time=24:00:00] examples/slurm/pretrain_moe.sh
# From the environment: CONFIG, RUN_DIR, GPUS_PER_NODE, NODES, DRY_RUN=1, CONTAINER, EXTRA, MLZH; see docs/cluster.md.
# Submit from the repository; options of sbatch win over the lines below.
#SBATCH --job-name=pretrain_moe
#SBATCH --nodes=8
#SBATCH --exclusive --mem=0
#SBATCH --signal=B:USR1@300
#SBATCH --requeue --open-mode=append
set -euo pipefail

CONFIG=${CONFIG:-examples/configs/8x7b.yaml} # or qwen3_30b_a3b.yaml; deepseek_v3.yaml with --nodes=128
RUN_DIR=${RUN_DIR:-runs/pretrain_$(basename "$CONFIG" .yaml)}
NODES=${NODES:-${SLURM_JOB_NUM_NODES:-8}} # how many of the allocated nodes train; the others stand by

# Slurm runs a copy of this file in a directory of its own: there the rest is found from where sbatch was typed.
rest=$(dirname "$0")/pretrain.sh
[[ -e $rest ]] || rest=${SLURM_SUBMIT_DIR:-.}/examples/slurm/pretrain.sh
source "$rest"
