"""Rules of pipeline parallelism: how layers are divided over stages, and which schedules run them."""

from __future__ import annotations

from megatron_lm_zh.config.rules.rule import divisors_of, multiples_around, needs, rule, words
from megatron_lm_zh.config.schema import Config
from megatron_lm_zh.config.stages import STAGE_KEYS, layers_of_stages, parse_layout
from megatron_lm_zh.errors import UserError

LAYOUT = "parallel.pipeline_model_parallel_layout"


@rule("parallel.pipeline", *(key for key in STAGE_KEYS if key != "parallel.pipeline"))
def stages_are_equal(config: Config, world: int | None) -> UserError | None:
    """Every pipeline stage and every chunk of it holds the same number of layers, unless the config says otherwise:
    a stage that has more keeps all others waiting."""
    parallel = config.parallel
    uneven = parallel.num_layers_in_first_pipeline_stage or parallel.num_layers_in_last_pipeline_stage
    if layers_of_stages(config) or parallel.pipeline_model_parallel_layout is not None or uneven:
        return None
    ranks, chunks = parallel.pipeline, parallel.virtual_pipeline
    extra = {
        "the embedding": parallel.account_for_embedding_in_pipeline_split,
        "the loss": parallel.account_for_loss_in_pipeline_split,
    }
    layers = config.model.num_layers + sum(extra.values())
    counted = "".join(f" + {name}" for name, counts in extra.items() if counts)
    legal = divisors_of(layers // chunks) if layers % chunks == 0 else []
    by = f"{ranks}" if chunks == 1 else f"{ranks} x virtual_pipeline={chunks} = {ranks * chunks}"
    what = f"parallel.pipeline: {by} does not divide num_layers={config.model.num_layers}{counted}"
    mend = f"or set model.num_layers to {multiples_around(layers, ranks * chunks)}" if not counted else ""
    return UserError(
        what, expected=f"one of {words(legal)}" if legal else f"a virtual_pipeline that divides {layers}", mend=mend
    )


@rule(
    "parallel.num_layers_in_first_pipeline_stage",
    "parallel.num_layers_in_last_pipeline_stage",
    *(key for key in STAGE_KEYS if "num_layers_in" not in key),
)
def uneven_stages_hold_all_layers(config: Config, world: int | None) -> UserError | None:
    """What the first and the last stage leave is divided evenly over the stages between them, chunk by chunk."""
    parallel = config.parallel
    first, last = parallel.num_layers_in_first_pipeline_stage, parallel.num_layers_in_last_pipeline_stage
    if (first is None and last is None) or parallel.pipeline_model_parallel_layout or layers_of_stages(config):
        return None
    between = parallel.pipeline - (first is not None) - (last is not None)
    left = config.model.num_layers - (first or 0) - (last or 0)
    key = "num_layers_in_first_pipeline_stage" if first is not None else "num_layers_in_last_pipeline_stage"
    chunks = f" of {parallel.virtual_pipeline} chunks each" if parallel.virtual_pipeline > 1 else ""
    what = f"parallel.{key}: leaves {left} layers for {max(between, 0)} stages between first and last{chunks}"
    if parallel.pipeline == 1:
        return UserError(what, mend=f"set parallel.pipeline above 1, or take {key} out")
    step = max(between, 1) * parallel.virtual_pipeline
    expected = f"a multiple of {step} to be left" if between else "none to be left"
    return UserError(what, expected=f"{expected}, and every stage to be a multiple of {parallel.virtual_pipeline}")


@rule(
    "parallel.num_layers_in_first_pipeline_stage",
    "parallel.num_layers_in_last_pipeline_stage",
    "parallel.account_for_embedding_in_pipeline_split",
    "parallel.account_for_loss_in_pipeline_split",
    LAYOUT,
)
def layers_are_divided_one_way(config: Config, world: int | None) -> UserError | None:
    """A layout spelled out, sizes of the outer stages, and the embedding and loss counted as layers each settle alone
    how layers are divided."""
    parallel = config.parallel
    ways = {
        "pipeline_model_parallel_layout": parallel.pipeline_model_parallel_layout is not None,
        "num_layers_in_first_pipeline_stage or num_layers_in_last_pipeline_stage": any(
            (parallel.num_layers_in_first_pipeline_stage, parallel.num_layers_in_last_pipeline_stage)
        ),
        "account_for_embedding_in_pipeline_split or account_for_loss_in_pipeline_split": any(
            (parallel.account_for_embedding_in_pipeline_split, parallel.account_for_loss_in_pipeline_split)
        ),
    }
    given = [way for way, is_given in ways.items() if is_given]
    if len(given) < 2:
        return None
    return UserError(f"parallel: {' and '.join(given)} are both set", mend="keep one of them")


@rule(LAYOUT)
def layout_has_known_letters(config: Config, world: int | None) -> UserError | None:
    """A layout is read letter by letter: E embedding, t layer, m multi-token prediction, L loss, `|` between stages."""
    layout = config.parallel.pipeline_model_parallel_layout
    unknown = sorted(set("".join(parse_layout(layout or ""))) - set("EtmL"))
    if not unknown:
        return None
    mend = "write groups as (...)*n without groups inside, repeated letters as t*n"
    return UserError(
        f"{LAYOUT}: {layout!r} has {words(map(repr, unknown))}", expected="letters E, t, m and L", mend=mend
    )


@rule(LAYOUT, "parallel.pipeline", "parallel.virtual_pipeline")
def layout_has_all_stages(config: Config, world: int | None) -> UserError | None:
    """A layout names every chunk of every pipeline rank, empty ones too."""
    layout, ranks = config.parallel.pipeline_model_parallel_layout, config.parallel.pipeline
    chunks = config.parallel.virtual_pipeline
    if layout is None or len(parse_layout(layout)) == ranks * chunks:
        return None
    found = len(parse_layout(layout))
    what = f"{LAYOUT}: has {found} stages; expected pipeline={ranks} x virtual_pipeline={chunks} = {ranks * chunks}"
    fitting = f"set parallel.virtual_pipeline: {found // ranks}" if found % ranks == 0 else "add or join stages by `|`"
    return UserError(what, mend=fitting)


@rule(LAYOUT, "model.num_layers", "model.mtp_num_layers")
def layout_has_all_layers(config: Config, world: int | None) -> UserError | None:
    """A layout that dropped or repeated a layer would train another model."""
    layout, model = config.parallel.pipeline_model_parallel_layout, config.model
    if layout is None:
        return None
    letters = "".join(parse_layout(layout))
    wanted = {"E": 1, "t": model.num_layers, "m": model.mtp_num_layers or 0, "L": 1}
    wrong = [
        f"{letters.count(key)} {key} (expected {count})" for key, count in wanted.items() if letters.count(key) != count
    ]
    if not wrong:
        return None
    return UserError(f"{LAYOUT}: has {words(wrong)}", mend="count the letters again, or change model.num_layers")


@rule(LAYOUT, "parallel.pipeline")
def layout_is_in_order(config: Config, world: int | None) -> UserError | None:
    """A token passes the embedding first, then layers, then multi-token prediction, then the loss; megatron-core builds
    the prediction layers together, in the last chunk of their rank, and wrongly on the first rank (seen: loss off by
    1e-3 after 4 steps)."""
    layout, ranks = config.parallel.pipeline_model_parallel_layout, config.parallel.pipeline
    if layout is None:
        return None
    stages = parse_layout(layout)
    letters = "".join(stages)
    holders = [number for number, stage in enumerate(stages) if "m" in stage]
    faults = {
        "E is not the first letter": not letters.startswith("E"),
        "L is not the last letter": not letters.endswith("L"),
        "a t follows an m": "m" in letters and "t" in letters[letters.index("m") :],
        "the m stand in several stages": len(holders) > 1,
        "m stands in a chunk that is not its rank's last": any(number < len(stages) - ranks for number in holders),
        "m stands on the first pipeline rank": ranks > 1 and any(number % ranks == 0 for number in holders),
    }
    wrong = [fault for fault, holds in faults.items() if holds]
    return UserError(f"{LAYOUT}: {words(wrong)}", expected="E ... t ... m ... L") if wrong else None


@rule("parallel.virtual_pipeline", "parallel.pipeline")
def interleaving_needs_stages(config: Config, world: int | None) -> UserError | None:
    """The interleaved schedule sends each chunk's output to another rank, so there must be one."""
    chunks = config.parallel.virtual_pipeline
    if chunks == 1 or config.parallel.pipeline > 1:
        return None
    what = f"parallel.virtual_pipeline: {chunks} chunks need parallel.pipeline above 1"
    return UserError(what, mend="set parallel.pipeline: 2, or virtual_pipeline: 1")


@rule("parallel.overlap_p2p_comm", "parallel.virtual_pipeline", "parallel.pipeline")
def interleaved_sends_are_apart(config: Config, world: int | None) -> UserError | None:
    """With two stages the two sends of a batch go to the same rank and are mismatched: the loss falls and the gradients
    are wrong (seen: grad norm 7.2 instead of 0.63)."""
    parallel = config.parallel
    if parallel.overlap_p2p_comm or parallel.virtual_pipeline == 1 or parallel.pipeline != 2:
        return None
    what = "parallel.overlap_p2p_comm: false mixes up the interleaved schedule's sends between 2 stages"
    return UserError(what, mend="set parallel.overlap_p2p_comm: true, or parallel.pipeline above 2")


@rule("parallel.microbatch_group_size_per_vp_stage", "parallel.virtual_pipeline")
def groups_are_of_the_interleaved_schedule(config: Config, world: int | None) -> UserError | None:
    """Only the interleaved schedule passes micro-batches through a chunk in groups."""
    size = config.parallel.microbatch_group_size_per_vp_stage
    if size is None or config.parallel.virtual_pipeline > 1:
        return None
    return needs(f"parallel.microbatch_group_size_per_vp_stage: {size}", {"parallel.virtual_pipeline above 1": False})


@rule(
    "parallel.microbatch_group_size_per_vp_stage",
    "train.global_batch_size",
    "train.rampup_batch_size",
    "train.micro_batch_size",
    "parallel.virtual_pipeline",
    "parallel.tensor",
    "parallel.context",
    "parallel.pipeline",
)
def interleaved_groups_are_full(config: Config, world: int | None) -> UserError | None:
    """The interleaved schedule passes whole groups of at least `pipeline` micro-batches through a chunk; a smaller rest
    would leave stages idle, and megatron-core does not start."""
    parallel, micro = config.parallel, config.train.micro_batch_size
    group = parallel.microbatch_group_size_per_vp_stage or parallel.pipeline
    if parallel.virtual_pipeline == 1 or world is None or world % config.replica_size:
        return None
    if group < parallel.pipeline:
        what = f"parallel.microbatch_group_size_per_vp_stage: {group} is less than pipeline={parallel.pipeline}"
        return UserError(what, expected=f"{parallel.pipeline} or more")
    data = world // config.replica_size
    for size in config.batch_sizes.sizes():
        count = size // (micro * data)
        if count < group or 0 < count % group < parallel.pipeline:
            what = f"train.global_batch_size: {size} makes {count} micro-batches a rank, no whole groups of {group}"
            return UserError(what, mend=f"nearest: {multiples_around(size, micro * data * group)}")
    return None


RULES = (
    stages_are_equal,
    uneven_stages_hold_all_layers,
    layers_are_divided_one_way,
    layout_has_known_letters,
    layout_has_all_stages,
    layout_has_all_layers,
    layout_is_in_order,
    interleaving_needs_stages,
    interleaved_sends_are_apart,
    groups_are_of_the_interleaved_schedule,
    interleaved_groups_are_full,
)
