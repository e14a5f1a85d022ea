#!/bin/bash
# Pretrains a 13B model (or any CONFIG):  sbatch [--nodes=128] [--time=24:00:00] examples/slurm/pretrain_13b.sh
# From the environment: CONFIG, RUN_DIR, GPUS_PER_NODE, NODES, DRY_RUN=1, CONTAINER, EXTRA, MLZH; see docs/cluster.md.
# Submit from the repository; options of sbatch win over the lines below.
#SBATCH --job-name=pretrain_13b
#SBATCH --nodes=16
#SBATCH --exclusive --mem=0
#SBATCH --signal=B:USR1@300
#SBATCH --requeue --open-mode=append
set -euo pipefail

CONFIG=${CONFIG:-examples/configs/13b.yaml}
RUN_DIR=${RUN_DIR:-runs/pretrain_13b}
NODES=${NODES:-${SLURM_JOB_NUM_NODES:-16}} # how many of the allocated nodes train; the others stand by

# Slurm runs a copy of this file in a directory of its own: there the rest is found from where sbatch was typed.
rest=$(dirname "$0")/pretrain.sh
[[ -e $rest ]] || rest=${SLURM_SUBMIT_DIR:-.}/examples/slurm/pretrain.sh
source "$rest"
