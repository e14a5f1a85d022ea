"""Rules of attention: heads, positions, windows, multi-latent attention."""

from __future__ import annotations

from megatron_lm_zh.config.rules.rule import divisors_of, multiples_around, needs, rule, words
from megatron_lm_zh.config.schema import Config, Model
from megatron_lm_zh.config.sections.rope_scaling import LinearScaling, Llama3Scaling, YarnScaling
from megatron_lm_zh.errors import UserError

MLA = "model.multi_latent_attention"
_LATENTS = ("q_lora_rank", "kv_lora_rank", "qk_head_dim", "qk_pos_emb_head_dim", "v_head_dim")


@rule("model.num_query_groups", "model.num_attention_heads")
def query_groups_divide_heads(config: Config, world: int | None) -> UserError | None:
    """In grouped-query attention every key/value head serves the same number of query heads."""
    groups, heads = config.model.num_query_groups, config.model.num_attention_heads
    if heads % groups == 0:
        return None
    what = f"model.num_query_groups: {groups} does not divide num_attention_heads={heads}"
    return UserError(what, expected=f"one of {words(divisors_of(heads))}")


@rule("model.hidden_size", "model.num_attention_heads", "model.kv_channels", MLA)
def heads_divide_hidden_size(config: Config, world: int | None) -> UserError | None:
    """hidden_size / num_attention_heads, the default of kv_channels, must not have been rounded down."""
    model = config.model
    if model.multi_latent_attention or model.hidden_size % model.num_attention_heads == 0:
        return None
    if model.kv_channels != model.hidden_size // model.num_attention_heads:
        return None  # set on purpose
    what = f"model.hidden_size: {model.hidden_size} is no multiple of num_attention_heads={model.num_attention_heads}"
    mend = f"nearest: {multiples_around(model.hidden_size, model.num_attention_heads)}"
    return UserError(what, mend=mend)


@rule(
    "model.kv_channels",
    "model.rotary_percent",
    "model.position_embedding_type",
    "model.hidden_size",
    "model.num_attention_heads",
    MLA,
)
def rotated_channels_are_pairs(config: Config, world: int | None) -> UserError | None:
    """Rotary position embedding turns the channels of a head in pairs."""
    model = config.model
    if model.position_embedding_type != "rope" or model.multi_latent_attention:
        return None
    channels = int(model.kv_channels * model.rotary_percent)
    if channels % 2 == 0 and channels:
        return None
    size = f"hidden_size={model.hidden_size} / num_attention_heads={model.num_attention_heads}"
    if model.rotary_percent == 1:
        what = f"model.kv_channels: {channels} is odd (its default is {size})"
        return UserError(what, expected="an even number", mend=f"nearest: {multiples_around(channels, 2)}")
    what = f"model.rotary_percent: {model.rotary_percent:g} of kv_channels={model.kv_channels} are {channels} channels"
    legal = max(2, channels // 2 * 2)
    return UserError(what, expected="an even number of them", mend=f"nearest: {legal / model.kv_channels:g}")


@rule("model.qk_pos_emb_head_dim", MLA)
def rotated_latent_channels_are_pairs(config: Config, world: int | None) -> UserError | None:
    """Rotary position embedding turns MLA's position channels in pairs, too."""
    channels = config.model.qk_pos_emb_head_dim
    if not config.model.multi_latent_attention or channels % 2 == 0:
        return None
    what = f"model.qk_pos_emb_head_dim: {channels} is odd"
    return UserError(what, expected="an even number", mend=f"nearest: {multiples_around(channels, 2)}")


@rule("model.seq_length", "model.max_position_embeddings")
def sequences_fit_positions(config: Config, world: int | None) -> UserError | None:
    """The model must take the sequences that it is trained on: learned positions have one row each, an exported model
    says how many."""
    length, longest = config.model.seq_length, config.model.max_position_embeddings
    if length <= longest:
        return None
    what = f"model.seq_length: {length} is more than max_position_embeddings={longest}"
    return UserError(what, mend=f"set model.max_position_embeddings to {length} or more, or leave it out")


@rule("model.position_embedding_type", "model.rope_scaling", "model.rotary_percent", "model.rotary_base")
def rotary_settings_have_rope(config: Config, world: int | None) -> UserError | None:
    """Scaling, base and share of a rotation that there is not would do nothing, silently."""
    model = config.model
    given = {
        "rope_scaling": model.rope_scaling is not None,
        "rotary_percent": model.rotary_percent != 1,
        "rotary_base": model.rotary_base != 10000,
    }
    without = [name for name, is_given in given.items() if is_given]
    if model.position_embedding_type == "rope" or not without:
        return None
    return needs(f"model.{without[0]}", {"model.position_embedding_type: rope": False})


@rule("model.rope_scaling", "model.rope_scaling.factor")
def scaling_stretches(config: Config, world: int | None) -> UserError | None:
    """Positions are stretched to longer sequences; a factor below 1 would press them together."""
    scaling = config.model.rope_scaling
    if scaling is None or scaling.factor >= 1:
        return None
    mend = f"a model trained on n positions and used on m has factor m / n, e.g. {1 / scaling.factor:g}"
    return UserError(f"model.rope_scaling.factor: {scaling.factor:g} is below 1", expected="1 or more", mend=mend)


@rule(
    "model.rope_scaling",
    "model.rope_scaling.low_freq_factor",
    "model.rope_scaling.high_freq_factor",
    "model.rope_scaling.beta_fast",
    "model.rope_scaling.beta_slow",
)
def scaling_has_a_band(config: Config, world: int | None) -> UserError | None:
    """Frequencies between the two bounds are blended; with the bounds crossed some would be scaled both ways."""
    scaling = config.model.rope_scaling
    if isinstance(scaling, Llama3Scaling):
        low, high, names = scaling.low_freq_factor, scaling.high_freq_factor, ("low_freq_factor", "high_freq_factor")
    elif isinstance(scaling, YarnScaling):
        low, high, names = scaling.beta_slow, scaling.beta_fast, ("beta_slow", "beta_fast")
    else:
        return None
    if low < high:
        return None
    what = f"model.rope_scaling.{names[0]}: {low:g} is not below {names[1]}={high:g}"
    return UserError(what, mend=f"swap the two, or take both out for {'1 and 4' if names[0][0] == 'l' else '1 and 32'}")


@rule("model.rope_scaling", "model.rope_scaling.original_max_position_embeddings", "model.max_position_embeddings")
def scaling_starts_from_fewer_positions(config: Config, world: int | None) -> UserError | None:
    """The length that a model was first trained on is not above what it is stretched to."""
    scaling, longest = config.model.rope_scaling, config.model.max_position_embeddings
    if scaling is None or isinstance(scaling, LinearScaling) or scaling.original_max_position_embeddings <= longest:
        return None
    original = scaling.original_max_position_embeddings
    key = "model.rope_scaling.original_max_position_embeddings"
    what = f"{key}: {original} is more than max_position_embeddings={longest}"
    return UserError(what, mend=f"set model.max_position_embeddings to {original} or more")


@rule("model.window_size")
def window_looks_back(config: Config, world: int | None) -> UserError | None:
    """A causal model sees nothing to its right; to the left a window has a size (-1: everything)."""
    window = config.model.window_size
    if window is None or (window[0] >= -1 and window[1] == 0):
        return None
    what = f"model.window_size: found {list(window)}"
    return UserError(what, expected="[positions to the left, 0]", mend=f"e.g. [{max(abs(window[0]), 1)}, 0]")


@rule("model.window_attn_skip_freq", "model.window_size", "model.num_layers")
def windowed_layers_are_named(config: Config, world: int | None) -> UserError | None:
    """Which layers have the window is said where there is one, and of every layer."""
    model = config.model
    frequency, layers = model.window_attn_skip_freq, model.num_layers
    if frequency is None:
        return None
    if model.window_size is None:
        return needs("model.window_attn_skip_freq", {"model.window_size": False})
    if isinstance(frequency, int):
        legal = frequency >= 1
        return None if legal else UserError(f"model.window_attn_skip_freq: found {frequency}", expected="1 or more")
    if len(frequency) == layers and set(frequency) <= {0, 1}:
        return None
    what = f"model.window_attn_skip_freq: found {len(frequency)} numbers, {words(sorted(set(frequency)))}"
    return UserError(what, expected=f"{layers} numbers, each 0 or 1")


@rule(MLA, "model.position_embedding_type")
def latent_attention_rotates(config: Config, world: int | None) -> UserError | None:
    """MLA carries positions in rotated channels of their own, whatever the rest of the model does."""
    model = config.model
    rope = model.position_embedding_type == "rope"
    return (
        needs(f"{MLA}: true", {"model.position_embedding_type: rope": rope}) if model.multi_latent_attention else None
    )


@rule(MLA, "model.rope_scaling", "model.rope_scaling.kind")
def latent_attention_scales_by_yarn(config: Config, world: int | None) -> UserError | None:
    """megatron-core's MLA knows YaRN; another scaling would be left out, silently."""
    model = config.model
    scaling = model.rope_scaling
    if not model.multi_latent_attention or scaling is None or isinstance(scaling, YarnScaling):
        return None
    return UserError(f"model.rope_scaling.kind: {scaling.kind} with {MLA}", mend="set model.rope_scaling.kind: yarn")


@rule("model.num_query_groups", "model.num_attention_heads", MLA)
def latent_attention_groups_no_queries(config: Config, world: int | None) -> UserError | None:
    """MLA makes keys and values of every head from the latent: there are no groups that share them."""
    model = config.model
    if not model.multi_latent_attention or model.num_query_groups == model.num_attention_heads:
        return None
    what = f"model.num_query_groups: {model.num_query_groups} with {MLA}"
    return UserError(what, expected=f"num_attention_heads={model.num_attention_heads}", mend="take it out")


@rule("model.kv_channels", "model.hidden_size", "model.num_attention_heads", MLA)
def latent_attention_has_its_own_channels(config: Config, world: int | None) -> UserError | None:
    """MLA's heads have qk_head_dim, qk_pos_emb_head_dim and v_head_dim channels; kv_channels would be ignored."""
    model = config.model
    default = model.hidden_size // model.num_attention_heads
    if not model.multi_latent_attention or model.kv_channels == default:
        return None
    what = f"model.kv_channels: {model.kv_channels} with {MLA}"
    return UserError(what, mend="take it out; set model.qk_head_dim and model.v_head_dim")


@rule("model.add_qkv_bias", MLA)
def latent_attention_has_no_qkv_bias(config: Config, world: int | None) -> UserError | None:
    """MLA has no projection to queries, keys and values that could have the bias."""
    model = config.model
    if not (model.multi_latent_attention and model.add_qkv_bias):
        return None
    return UserError(f"model.add_qkv_bias: true with {MLA}", mend="set model.add_qkv_bias: false")


@rule(MLA, *(f"model.{name}" for name in _LATENTS))
def latents_have_latent_attention(config: Config, world: int | None) -> UserError | None:
    """Sizes of latents in a model without them would do nothing, silently."""
    model = config.model
    defaults = {name: field.default for name, field in Model.__pydantic_fields__.items()}  # type: ignore[attr-defined]
    given = [name for name in _LATENTS if getattr(model, name) != defaults[name]]
    if model.multi_latent_attention or not given:
        return None
    return needs(f"model.{given[0]}", {f"{MLA}: true": False})


@rule("parallel.tensor", "model.q_lora_rank", "model.kv_lora_rank", "model.qk_pos_emb_head_dim", MLA)
def tensor_divides_latents(config: Config, world: int | None) -> UserError | None:
    """Where there is no Transformer Engine, the projections to the latents are split over the tensor-parallel ranks."""
    model, tensor = config.model, config.parallel.tensor
    sizes = {
        "q_lora_rank": model.q_lora_rank or 0,
        "kv_lora_rank + qk_pos_emb_head_dim": model.kv_lora_rank + model.qk_pos_emb_head_dim,
    }
    wrong = [f"{name}={size}" for name, size in sizes.items() if size % tensor]
    if not model.multi_latent_attention or not wrong:
        return None
    mend = f"nearest: {multiples_around(sizes[wrong[0].split('=')[0]], tensor)}"
    return UserError(f"parallel.tensor: {tensor} does not divide {wrong[0]}", mend=mend)


RULES = (
    query_groups_divide_heads,
    heads_divide_hidden_size,
    rotated_channels_are_pairs,
    rotated_latent_channels_are_pairs,
    sequences_fit_positions,
    rotary_settings_have_rope,
    scaling_stretches,
    scaling_has_a_band,
    scaling_starts_from_fewer_positions,
    window_looks_back,
    windowed_layers_are_named,
    latent_attention_rotates,
    latent_attention_scales_by_yarn,
    latent_attention_groups_no_queries,
    latent_attention_has_its_own_channels,
    latent_attention_has_no_qkv_bias,
    latents_have_latent_attention,
    tensor_divides_latents,
)
