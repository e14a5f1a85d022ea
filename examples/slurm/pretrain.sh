# What the pretrain_*.sh scripts beside this file share; they set CONFIG, RUN_DIR and NODES and source it. No job by itself.
set -euo pipefail

GPUS_PER_NODE=${GPUS_PER_NODE:-8} # tasks a node, one for each GPU; on a CPU cluster: ranks a node
MLZH=${MLZH:-$([[ -x .venv/bin/mlzh ]] && echo .venv/bin/mlzh || echo mlzh)}
read -ra EXTRA <<<"${EXTRA:-}"
cpus=$((${SLURM_CPUS_ON_NODE:-$(nproc)} / GPUS_PER_NODE))
cpus=$((cpus > 0 ? cpus : 1))

# Kernels are queued in launch order, so the collectives of TP and SP start before the matmuls that hide them (Hopper).
export CUDA_DEVICE_MAX_CONNECTIONS=${CUDA_DEVICE_MAX_CONNECTIONS:-1}
# Transformer Engine's norms leave 16 of 132 SMs to NCCL, whose overlapped kernels would otherwise wait for a free one.
export NVTE_FWD_LAYERNORM_SM_MARGIN=${NVTE_FWD_LAYERNORM_SM_MARGIN:-16}
export NVTE_BWD_LAYERNORM_SM_MARGIN=${NVTE_BWD_LAYERNORM_SM_MARGIN:-16}
# Segments that grow: no memory is lost to holes when the sizes of activations vary.
export PYTORCH_CUDA_ALLOC_CONF=${PYTORCH_CUDA_ALLOC_CONF:-expandable_segments:True}
# Compiled kernels go to the node's own disk: hundreds of ranks that lock one shared directory stall its metadata server.
cache=${TMPDIR:-/tmp}/mlzh-cache-$UID
export TRITON_CACHE_DIR=${TRITON_CACHE_DIR:-$cache/triton}
export TORCHINDUCTOR_CACHE_DIR=${TORCHINDUCTOR_CACHE_DIR:-$cache/inductor}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$cpus}
export PYTHONUNBUFFERED=1 # the last words of a rank that is killed reach the log

launch=(srun --nodes="$NODES" --ntasks-per-node="$GPUS_PER_NODE" --cpus-per-task="$cpus" --mpi=none --label)
launch+=(--kill-on-bad-exit=1)
# Asked for a node, not a task, so that each rank sees its NVLink peers; refused where Slurm knows no GPUs.
[[ -n ${SLURM_GPUS_ON_NODE:-} ]] && launch+=(--gpus-per-node="$GPUS_PER_NODE")
case ${CONTAINER:-} in
"") ;;
*.sif) launch+=(apptainer exec --nv --bind "$PWD" --pwd "$PWD" "$CONTAINER") ;;
*) launch+=(--container-image="$CONTAINER" --container-mounts="$PWD:$PWD" --container-workdir="$PWD") ;; # pyxis
esac
launch+=("$MLZH" pretrain "$CONFIG" run.dir="$RUN_DIR" "${EXTRA[@]}")

if [[ ${DRY_RUN:-0} == 1 ]]; then
    world=$((NODES * GPUS_PER_NODE))
    "$MLZH" config show "$CONFIG" run.dir="$RUN_DIR" "${EXTRA[@]}" --world $world
    "$MLZH" config layout "$CONFIG" "${EXTRA[@]}" --world $world --gpus-per-node "$GPUS_PER_NODE"
    printf '%q ' "${launch[@]}" && echo
    exit 0
fi

"${launch[@]}" &
step=$!
signalled=0
trap 'signalled=1; kill -USR1 $step' USR1 # srun passes it on to every rank: they save and end
while code=0; wait $step || code=$?; ((code == 138)); do :; done # 128 + USR1: the trap broke off the wait, not the step

if ((code == 0)) && [[ -e $RUN_DIR/DONE ]]; then # srun's 0 alone proves nothing: a lost node can give it, too
    echo "job $SLURM_JOB_ID: done"
elif ((code == 0 && signalled)); then
    echo "job $SLURM_JOB_ID: saved before the time limit; requeued"
    scontrol requeue "$SLURM_JOB_ID"
else
    echo "job $SLURM_JOB_ID: the run is not done (srun gave $code); see $RUN_DIR/logs" >&2
    exit $((code > 0 ? code : 1))
fi
