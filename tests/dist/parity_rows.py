"""The rows of docs/parity.md: every layout that is proven against one rank, as data for the tests and for the table.

A row of `dense` starts from examples/parity/dense.yaml, and so on. Each is 20 steps with clipping active.
"""

from __future__ import annotations

from dataclasses import dataclass

STEPS = 20

TP2 = ("parallel.tensor=2",)
SP2 = (*TP2, "parallel.sequence=true")
PP2 = ("parallel.pipeline=2",)
VPP2 = (*PP2, "parallel.virtual_pipeline=2")
CP2 = ("parallel.context=2",)
EP2 = ("parallel.expert=2",)
ETP1 = ("parallel.expert_tensor=1",)
SHARDED = ("optim.use_distributed_optimizer=true",)
FSDP = (*SHARDED, "ddp.use_megatron_fsdp=true")
OVERLAPPED = (*SHARDED, "ddp.overlap_grad_reduce=true", "ddp.overlap_param_gather=true")
PACKED = ("data.reset_attention_mask=true", "data.reset_position_ids=true")
BF16 = ("precision.dtype=bf16",)
FP16 = ("precision.dtype=fp16", "precision.initial_loss_scale=256")
ONE = ("train.micro_batch_size=1",)
TIES = (
    "one sequence a micro-batch: two that begin with the same token tie for an expert's last place, and rounding "
    "decides which is dropped"
)
NO_AUX = ("model.moe_aux_loss_coeff=0",)
UNIFORM = ("granularity=full", "method=uniform", "num_layers=1")
BLOCK = ("granularity=full", "method=block", "num_layers=1")


@dataclass(frozen=True)
class Row:
    """One layout of one model."""

    name: str
    model: str
    """Which of examples/parity/*.yaml."""
    ranks: int
    overrides: tuple[str, ...]
    note: str = ""
    quick: bool = False
    """Whether `make test` runs it, too."""

    @property
    def config(self) -> str:
        """Path of the config below the repository's root."""
        return f"examples/parity/{self.model}.yaml"

    @property
    def command(self) -> str:
        """What a user types for this row."""
        words = [f"'{word}'" if set(word) & set("|[]*{} ") else word for word in self.overrides]
        return " ".join(["mlzh parity", self.config, *words, "--as-is", f"--ranks {self.ranks}"])


def _recompute(*settings: str) -> tuple[str, ...]:
    return tuple(f"model.recompute_{setting}" for setting in settings)


def _selective(module: str) -> tuple[str, ...]:
    return _recompute("granularity=selective", f"modules=[{module}]")


def _model(*settings: str) -> tuple[str, ...]:
    return tuple(f"model.{setting}" for setting in settings)


GPT2 = _model("activation=gelu", "normalization=LayerNorm", "add_bias_linear=true")
GPT2_POSITIONS = (*GPT2, *_model("position_embedding_type=learned_absolute", "num_query_groups=4"))
ALIBI = _model("position_embedding_type=alibi")
WINDOW = _model("window_size=[7,0]", "window_attn_skip_freq=2")
GLM_0414 = _model("sandwich_norm=true", "add_qkv_bias=true", "rotary_percent=0.5")
LLAMA3 = _model("rope_scaling={kind: llama3, factor: 4, original_max_position_embeddings: 16}")
YARN = _model("rope_scaling={kind: yarn, factor: 4, original_max_position_embeddings: 8}")
BEST_GROUPS = _model(
    "num_moe_experts=12",
    "moe_router_num_groups=4",
    "moe_router_group_topk=2",
    "moe_router_topk=4",
    "moe_router_group_score=max",
)
PREDICTION_APART = (
    "parallel.pipeline=3",
    "parallel.virtual_pipeline=2",
    "parallel.pipeline_model_parallel_layout=Et|t|t|t|m|L",
    "train.global_batch_size=12",
)

UNLIKE_ON_0_19 = {
    "deepseek-cp2": "megatron-core 0.19 weighs multi-token predictions by each context-parallel rank's own tokens",
}
"""Rows that differ there, and why."""

AXES = (
    Row("tp2", "dense", 2, TP2, quick=True),
    Row("tp4", "dense", 4, ("parallel.tensor=4", "model.num_query_groups=4")),
    Row("tp2-sp", "dense", 2, SP2, quick=True),
    Row("pp2", "dense", 2, PP2),
    Row("pp4", "dense", 4, ("parallel.pipeline=4",)),
    Row("pp2-vpp2", "dense", 2, VPP2, quick=True),
    Row("pp4-vpp2", "dense", 4, ("parallel.pipeline=4", "parallel.virtual_pipeline=2", "model.num_layers=8")),
    Row("cp2", "dense", 2, CP2, quick=True),
    Row("cp4", "dense", 4, ("parallel.context=4",)),
    Row("dp2", "dense", 2, ()),
    Row("dp4", "dense", 4, ()),
    Row("dp2-distributed-optimizer", "dense", 2, SHARDED),
    Row("dp2-overlapped", "dense", 2, OVERLAPPED, quick=True),
    Row("dp2-fsdp-zero-1", "dense", 2, (*FSDP, "ddp.data_parallel_sharding_strategy=optim")),
    Row("dp2-fsdp-zero-2", "dense", 2, (*FSDP, "ddp.data_parallel_sharding_strategy=optim_grads")),
    Row("dp2-fsdp-zero-3", "dense", 2, FSDP, quick=True),
)
PAIRS = (
    Row("tp2-pp2", "dense", 4, (*TP2, *PP2)),
    Row("tp2-sp-pp2-vpp2", "dense", 4, (*SP2, *VPP2)),
    Row("tp2-cp2", "dense", 4, (*TP2, *CP2)),
    Row("tp2-sp-cp2", "dense", 4, (*SP2, *CP2)),
    Row("tp2-sp-dp2-overlapped", "dense", 4, (*SP2, *OVERLAPPED)),
    Row("pp2-cp2", "dense", 4, (*PP2, *CP2)),
    Row("pp2-vpp2-cp2", "dense", 4, (*VPP2, *CP2)),
    Row("pp2-dp2", "dense", 4, PP2),
    Row("pp2-dp2-distributed-optimizer", "dense", 4, (*PP2, *SHARDED)),
    Row("pp2-vpp2-dp2-overlapped", "dense", 4, (*VPP2, *OVERLAPPED)),
    Row("cp2-distributed-optimizer", "dense", 2, (*CP2, *SHARDED)),
    Row("cp2-dp2-overlapped", "dense", 4, (*CP2, *OVERLAPPED)),
    Row("tp2-dp2-micro-batch-1", "dense", 4, (*TP2, "train.micro_batch_size=1")),
)
TRIPLES = (
    Row("tp2-pp2-dp2", "dense", 8, (*TP2, *PP2)),
    Row("tp2-sp-pp2-vpp2-dp2-overlapped", "dense", 8, (*SP2, *VPP2, *OVERLAPPED)),
    Row("tp2-cp2-pp2", "dense", 8, (*TP2, *CP2, *PP2)),
    Row("tp2-sp-cp2-pp2-vpp2", "dense", 8, (*SP2, *CP2, *VPP2)),
    Row("order-tp-cp-ep-pp-dp", "dense", 8, (*TP2, *PP2, *SHARDED, "parallel.order=tp-cp-ep-pp-dp")),
)
STAGES = (
    Row("first-stage-1", "dense", 2, (*PP2, "parallel.num_layers_in_first_pipeline_stage=1")),
    Row(
        "first-and-last-stage-1",
        "dense",
        3,
        (
            "parallel.pipeline=3",
            "parallel.num_layers_in_first_pipeline_stage=1",
            "parallel.num_layers_in_last_pipeline_stage=1",
        ),
    ),
    Row(
        "stages-spelled-out",
        "dense",
        2,
        (*VPP2, "parallel.pipeline_model_parallel_layout=Et|tt|t|L"),
        quick=True,
    ),
    Row(
        "embedding-and-loss-as-layers",
        "dense",
        2,
        (
            *PP2,
            "parallel.account_for_embedding_in_pipeline_split=true",
            "parallel.account_for_loss_in_pipeline_split=true",
        ),
    ),
    Row("vpp2-groups-of-4", "dense", 2, (*VPP2, "parallel.microbatch_group_size_per_vp_stage=4")),
    Row("tied-pp2", "dense", 2, (*PP2, "model.tie_embeddings=true")),
    Row("tied-tp2-pp2-vpp2", "dense", 4, (*TP2, *VPP2, "model.tie_embeddings=true")),
)
MEMORY = (
    Row("recompute-core-attention-tp2", "dense", 2, (*TP2, *_selective("core_attn"))),
    Row("recompute-layernorm-tp2-sp", "dense", 2, (*SP2, *_selective("layernorm"))),
    Row("recompute-mlp-pp2", "dense", 2, (*PP2, *_selective("mlp"))),
    Row("recompute-moe-ep2", "moe", 2, (*EP2, *_selective("moe"))),
    Row("recompute-shared-experts-tp2-sp", "deepseek", 2, (*SP2, *_selective("shared_experts"))),
    Row("recompute-mla-projection-tp2-sp", "deepseek", 2, (*SP2, *_selective("mla_up_proj"))),
    Row("recompute-uniform-tp2-sp", "dense", 2, (*SP2, *_recompute(*UNIFORM))),
    Row("recompute-uniform-pp2-vpp2", "dense", 2, (*VPP2, *_recompute(*UNIFORM))),
    Row("recompute-block-tp2-pp2", "dense", 4, (*TP2, *PP2, *_recompute(*BLOCK))),
    Row("recompute-block-cp2", "dense", 2, (*CP2, *_recompute(*BLOCK))),
    Row(
        "recompute-distributed-tp2",
        "dense",
        2,
        (*TP2, *_recompute(*UNIFORM), "model.distribute_saved_activations=true"),
    ),
)
ATTENTION = (
    Row("window-cp2", "dense", 2, (*CP2, *WINDOW)),
    Row("window-tp2-pp2", "dense", 4, (*TP2, *PP2, *WINDOW)),
    Row("alibi-tp2", "dense", 2, (*TP2, *ALIBI)),
    Row("alibi-cp2", "dense", 2, (*CP2, *ALIBI), quick=True),
    Row("learned-positions-cp2-pp2", "dense", 4, (*CP2, *PP2, *GPT2_POSITIONS)),
    Row("gpt2-tp2-sp", "dense", 2, (*SP2, *GPT2_POSITIONS)),
    Row("no-positions-cp2", "dense", 2, (*CP2, "model.position_embedding_type=none")),
    Row("qk-norm-tp2-sp", "dense", 2, (*SP2, "model.qk_layernorm=true")),
    Row("sandwich-tp2-sp", "dense", 2, (*SP2, *GLM_0414), quick=True),
    Row("sandwich-pp2", "dense", 2, (*PP2, *GLM_0414)),
    Row("sandwich-cp2", "dense", 2, (*CP2, *GLM_0414)),
    Row("sandwich-dp2-distributed-optimizer", "dense", 2, (*SHARDED, *GLM_0414)),
    Row("sandwich-fsdp-tp2-sp-dp2", "dense", 4, (*FSDP, *SP2, *GLM_0414)),
    Row(
        "sandwich-bf16-biases-recompute-tp2-sp",
        "dense",
        2,
        (
            *BF16,
            *SP2,
            *GLM_0414,
            "model.add_bias_linear=true",
            *_recompute("granularity=selective", "modules=[layernorm,mlp]"),
        ),
    ),
    Row("qkv-bias-tp2", "dense", 2, (*TP2, "model.add_qkv_bias=true")),
    Row("multi-query-pp2", "dense", 2, (*PP2, "model.num_query_groups=1")),
    Row("squared-relu-tp2", "dense", 2, (*TP2, "model.activation=squared_relu")),
    Row("partial-rotary-tp2", "dense", 2, (*TP2, "model.rotary_percent=0.5")),
    Row("llama3-rope-cp2", "dense", 2, (*CP2, *LLAMA3)),
    Row("yarn-cp2", "dense", 2, (*CP2, *YARN)),
    Row("linear-rope-tp2-cp2", "dense", 4, (*TP2, *CP2, "model.rope_scaling={kind: linear, factor: 2}")),
)
DATA = (
    Row("packed-cp2", "dense", 2, (*CP2, *PACKED, "train.micro_batch_size=1"), quick=True),
    Row("packed-tp2-pp2", "dense", 4, (*TP2, *PP2, *PACKED, "train.micro_batch_size=1")),
    Row("packed-dp2-masked-ends", "dense", 2, (*PACKED, "data.eod_mask_loss=true", "train.micro_batch_size=1")),
    Row("masked-ends-pp2-cp2", "dense", 4, (*PP2, *CP2, "data.eod_mask_loss=true")),
    Row("loss-weights-dp2", "dense", 2, ("data.train.0.loss_weight=3",)),
    Row("loss-weights-tp2-pp2", "dense", 4, (*TP2, *PP2, "data.train.0.loss_weight=3")),
    Row("batch-ramp-dp2", "dense", 2, ("train.rampup_batch_size=[4,4,32]",)),
)
OPTIM = (
    Row("z-loss-tp2", "dense", 2, (*TP2, "train.z_loss_coeff=1e-3")),
    Row("sgd-tp2-dp2", "dense", 4, (*TP2, "optim.optimizer=sgd", "optim.lr=0.1")),
    Row("decoupled-lr-pp2", "dense", 2, (*PP2, "optim.decoupled_lr=1e-2", "optim.decoupled_min_lr=1e-3")),
    Row(
        "weight-decay-ramp-dp2",
        "dense",
        2,
        (
            *SHARDED,
            "optim.start_weight_decay=0.01",
            "optim.end_weight_decay=0.5",
            "optim.weight_decay_incr_style=cosine",
        ),
    ),
)
PRECISION = (
    Row("bf16-tp2-sp-dp2-distributed-optimizer", "dense", 4, (*BF16, *SP2, *SHARDED), quick=True),
    Row("bf16-pp2-vpp2", "dense", 2, (*BF16, *VPP2)),
    Row("bf16-cp2", "dense", 2, (*BF16, *CP2)),
    Row("bf16-moe-ep2", "moe", 2, (*BF16, *EP2)),
    Row("fp16-tp2", "dense", 2, (*FP16, *TP2)),
    Row("fp16-pp2-dp2-distributed-optimizer", "dense", 4, (*FP16, *PP2, *SHARDED)),
)
EXPERTS = (
    Row("moe-ep2", "moe", 2, EP2, quick=True),
    Row("moe-ep4", "moe", 4, ("parallel.expert=4",)),
    Row("moe-dp2", "moe", 2, ()),
    Row("moe-tp2-sp", "moe", 2, SP2),
    Row("moe-pp2-vpp2", "moe", 2, VPP2),
    Row("moe-cp2", "moe", 2, CP2, quick=True),
    Row("moe-ep2-tp2-sp", "moe", 4, (*EP2, *SP2)),
    Row("moe-ep2-etp1-tp2-sp", "moe", 2, (*EP2, *ETP1, *SP2), quick=True),
    Row("moe-ep2-pp2", "moe", 4, (*EP2, *PP2)),
    Row("moe-ep2-pp2-vpp2-overlapped", "moe", 4, (*EP2, *VPP2, *OVERLAPPED)),
    Row("moe-ep2-cp2", "moe", 2, (*EP2, *CP2)),
    Row("moe-ep2-dp4-distributed-optimizer", "moe", 4, (*EP2, *SHARDED)),
    Row("moe-ep2-etp1-tp2-sp-cp2-pp2", "moe", 8, (*EP2, *ETP1, *SP2, *CP2, *PP2)),
    Row("moe-allgather-ep2", "moe", 2, (*EP2, "model.moe_token_dispatcher_type=allgather")),
    Row("moe-allgather-ep2-tp2-sp", "moe", 4, (*EP2, *SP2, "model.moe_token_dispatcher_type=allgather")),
    Row("moe-every-second-layer-pp2", "moe", 2, (*PP2, "model.moe_layer_freq=2")),
)
ROUTERS = (
    Row("router-seq-aux-ep2", "moe", 2, (*EP2, *_model("moe_router_load_balancing_type=seq_aux_loss"))),
    Row(
        "router-global-aux-ep2-etp1-tp2-sp",
        "moe",
        2,
        (*EP2, *ETP1, *SP2, *_model("moe_router_load_balancing_type=global_aux_loss")),
        note="without data parallelism: the loss averages over the micro-batches seen so far, and replicas see "
        "several at once",
    ),
    Row("router-sinkhorn-ep2", "moe", 2, (*EP2, *NO_AUX, *_model("moe_router_load_balancing_type=sinkhorn"))),
    Row(
        "router-bias-ep2-pp2",
        "moe",
        4,
        (
            *EP2,
            *PP2,
            *NO_AUX,
            *_model(
                "moe_router_load_balancing_type=none",
                "moe_router_score_function=sigmoid",
                "moe_router_enable_expert_bias=true",
                "moe_router_bias_update_rate=1e-2",
            ),
        ),
    ),
    Row("router-z-loss-ep2-tp2-sp", "moe", 4, (*EP2, *SP2, *_model("moe_z_loss_coeff=1e-2"))),
    Row("router-sigmoid-ep2", "moe", 2, (*EP2, *_model("moe_router_score_function=sigmoid"))),
    Row(
        "router-groups-ep2",
        "moe",
        2,
        (*EP2, *_model("num_moe_experts=8", "moe_router_num_groups=4", "moe_router_group_topk=2")),
    ),
    Row("router-best-groups-tp2-sp", "moe", 2, (*SP2, *BEST_GROUPS)),
    Row("router-best-groups-ep2", "moe", 2, (*EP2, *BEST_GROUPS, *_model("moe_router_pre_softmax=true")), quick=True),
    Row("router-best-groups-pp2-recompute", "moe", 2, (*PP2, *BEST_GROUPS, *_selective("moe"))),
    Row("router-fp64-ep2", "moe", 2, (*EP2, *_model("moe_router_dtype=fp64"))),
    Row("shared-experts-ep2-tp2-sp", "moe", 4, (*EP2, *SP2, *_model("moe_shared_expert_intermediate_size=64"))),
    Row(
        "shared-experts-gate-pp2",
        "moe",
        2,
        (*PP2, *_model("moe_shared_expert_intermediate_size=64", "moe_shared_expert_gate=true")),
    ),
    Row("capacity-drop-ep2", "moe", 2, (*EP2, *ONE, *_model("moe_expert_capacity_factor=0.75")), note=TIES),
    Row(
        "capacity-pad-ep2",
        "moe",
        2,
        (*EP2, *ONE, *_model("moe_expert_capacity_factor=1.0", "moe_pad_expert_input_to_capacity=true")),
        note=TIES,
    ),
    Row(
        "capacity-position-pp2",
        "moe",
        2,
        (*PP2, *_model("moe_expert_capacity_factor=0.75", "moe_token_drop_policy=position")),
    ),
    Row(
        "capacity-large-ep2-tp2-sp",
        "moe",
        4,
        (*EP2, *SP2, *_model("moe_expert_capacity_factor=2.0", "moe_pad_expert_input_to_capacity=true")),
        note="a capacity that nothing exceeds: a smaller one is a share of one rank's tokens, and other tokens are "
        "dropped where a sequence is divided",
    ),
)
DEEPSEEK = (
    Row("deepseek-tp2-sp", "deepseek", 2, SP2),
    Row("deepseek-pp2", "deepseek", 2, PP2),
    Row(
        "deepseek-pp2-vpp2-mtp-with-loss", "deepseek", 2, (*VPP2, "parallel.pipeline_model_parallel_layout=Et|tt|t|mL")
    ),
    Row("deepseek-prediction-on-its-own-stage", "deepseek", 3, PREDICTION_APART, quick=True),
    Row("deepseek-cp2", "deepseek", 2, CP2, quick=True),
    Row("deepseek-ep2", "deepseek", 2, EP2),
    Row("deepseek-ep2-etp1-tp2-sp-pp2", "deepseek", 4, (*EP2, *ETP1, *SP2, *PP2)),
    Row("deepseek-ep2-dp2-overlapped", "deepseek", 2, (*EP2, *OVERLAPPED)),
    Row("deepseek-ep2-pp2-dp4-distributed-optimizer", "deepseek", 8, (*EP2, *PP2, *SHARDED)),
    Row("deepseek-best-groups-ep2-pp2", "deepseek", 4, (*EP2, *PP2, *BEST_GROUPS)),
    Row("deepseek-two-predictions-tp2-sp", "deepseek", 2, (*SP2, "model.mtp_num_layers=2")),
    Row("mla-dense-cp2-pp2", "dense", 4, (*CP2, *PP2, *_model("multi_latent_attention=true", "num_query_groups=4"))),
)

ROWS: tuple[Row, ...] = (
    *AXES,
    *PAIRS,
    *TRIPLES,
    *STAGES,
    *MEMORY,
    *ATTENTION,
    *DATA,
    *OPTIM,
    *PRECISION,
    *EXPERTS,
    *ROUTERS,
    *DEEPSEEK,
)
