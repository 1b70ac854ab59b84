"""Names of tensors in what upstream trainers save -> ours: which of theirs, or which rows of it, is which of ours.

    metamorph   facebookresearch/metamorph at 0b13deb   -> MetaMorph
        model.{embed_tokens,layers,norm}, lm_head       transformers' LlamaForCausalLM
        model.mm_projector                              metamorph/model/multimodal_projector/builder.py
        vision_head                                     metamorph/model/language_model/metamorph_llama.py
        vision_proj (never used)                        metamorph/model/metamorph_arch.py
        model.vision_tower                              metamorph/model/multimodal_encoder/siglip_encoder.py
    llava       haotian-liu/LLaVA, mm_projector.bin     -> MetaMorph's adapter and marks
        model.mm_projector, model.embed_tokens          llava/train/train.py, llava/model/llava_arch.py
    metaquery   facebookresearch/metaquery at 206f6de   -> MetaQuery
        model.{mllm_backbone,connector,transformer}     models/model.py
        layers of the connector                         models/transformer_encoder.py
        vae                                             models/metaquery.py
    openuni     wusize/OpenUni at d1703fc               -> MetaQuery's queries, connector and decoder
        meta_queries, connector, projector, transformer, lmm    src/models

Their rows of new tokens follow those of the vocabulary: MetaMorph appends <image_start> and <image_end>, MetaQuery
<begin_of_img>, <end_of_img>, <img0> ... (models/model.py); here they are `marks` and `queries` of their own.
Written from memory of these files, with no saved one at hand: attributes of the outermost classes, the order of
MetaQuery's rows, places in its Sequential, and of OpenUni all but `meta_queries`. A wrong
name is an error; a wrong order would not be, so where the tokenizer lies beside the weights it tells the rows.
No torch: names and shapes alone.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from models.configs import MetaMorph, MetaQuery
from models.parts import QwenVL

Shape = tuple[int, ...]
Kind = Literal["metamorph", "metaquery", "openuni", "llava"]
MODULE, ENCODER = "module.", "encoder."  # how our names begin: what may be taken, what can only be compared


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A tensor of theirs, or these rows of it."""

    name: str
    rows: Sequence[int] | None = None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What becomes of every tensor of theirs.

    taken: ours in the module -> theirs; a piece with fewer rows than ours fills the first. compared: the same of the
    leaf encoders, which cannot be set and must be equal. left_out: reason -> their names. kept: ours that it lacks.
    """

    taken: dict[str, Piece] = field(default_factory=dict)
    compared: dict[str, Piece] = field(default_factory=dict)
    left_out: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    kept: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class _Rule:
    """theirs: a pattern of whole names. ours: what it becomes, or None with the reason why it is left out or refused.

    rows: of theirs, where they are not all. height: how many it must have then. filling: ours may have more.
    """

    theirs: str
    ours: str | None = None
    rows: Sequence[int] | None = None
    height: int | None = None
    filling: bool = False
    unread: str = ""
    refused: str = ""


@dataclass(frozen=True, kw_only=True)
class _Upstream:
    """title: for people. into: the config it fits. needs: ours that it must have. groups: ours, whole or not at all.

    rules: (config, theirs, ours, ids of the tokenizer, ids of added tokens) -> rules; all that fit a name apply, but
    for one that leaves it out.
    """

    title: str
    into: type
    needs: str
    groups: tuple[str, ...]
    rules: Callable[[Any, Mapping[str, Shape], Mapping[str, Shape], int, Mapping[str, int]], tuple[_Rule, ...]]


def recognised(names: Sequence[str]) -> Kind:
    """Which upstream these names are of.

    Raises:
        ValueError: of none.
    """

    def any_of(*beginnings: str) -> bool:
        return any(name.startswith(beginnings) for name in names)

    if any_of("model.mllm_backbone.", "model.connector."):
        return "metaquery"
    if "meta_queries" in names:
        return "openuni"
    if any_of("model.mm_projector.") or "model.mm_projector" in names:
        return "metamorph" if any_of("model.layers.", "lm_head.") else "llava"
    shown = ", ".join(sorted(names)[:3]) or "nothing"
    raise ValueError(
        f"{len(names)} tensors ({shown} ...) are of no trainer that is known here: metamorph and llava have "
        "model.mm_projector, metaquery model.connector, openuni meta_queries; see --format"
    )


def suited(kind: Kind, config: Any) -> None:
    """ValueError where weights of an upstream become another architecture."""
    upstream = UPSTREAMS[kind]
    if not isinstance(config, upstream.into):
        raise ValueError(
            f"it is {upstream.title}, which becomes a {upstream.into.__name__}, and the recipe's architecture is a "
            f"{type(config).__name__}: choose another recipe"
        )


def planned(
    kind: Kind,
    config: Any,
    theirs: Mapping[str, Shape],
    ours: Mapping[str, Shape],
    *,
    ids: int,
    added: Mapping[str, int],
) -> Plan:
    """What becomes of every tensor of an upstream file.

    Args:
        config: one that is `suited`. ours: `module.*`, tied parameters once, and `encoder.*`.
        ids: of our tokenizer. added: names of tokens -> rows, where their tokenizer came along.
    Raises:
        ValueError: names that fit nothing, ours that are missing, or other shapes: how many, and the first three.
    """
    upstream = UPSTREAMS[kind]
    rules = upstream.rules(config, theirs, ours, ids, added)
    plan, unmatched, twice, reshaped = Plan(), [], [], []
    for name, shape in theirs.items():
        fits = [(rule, match) for rule in rules if (match := re.fullmatch(rule.theirs, name))]
        refused = next((rule.refused for rule, _ in fits if rule.refused), "")
        if refused:
            raise ValueError(f"it is {upstream.title}, and {name} cannot be read: {refused}")
        unread = next((rule.unread for rule, _ in fits if rule.unread), "")
        if unread:
            plan.left_out[unread].append(name)
            continue
        placed = False
        for rule, match in fits:
            assert rule.ours is not None
            target = match.expand(rule.ours)
            if target not in ours:
                continue
            placed = True
            if problem := _reshaped(rule, shape, ours[target]):
                reshaped.append(f"{name} {problem}")
            into = plan.taken if target.startswith(MODULE) else plan.compared
            if target in into:
                twice.append(name)
            into[target] = Piece(name=name, rows=rule.rows)
        if not placed:
            unmatched.append(name)
    missing = _missing(upstream, plan, ours)
    faults = (
        (unmatched, "of it have no place in the recipe's architecture"),
        (missing, "of the recipe's architecture are not in it"),
        (reshaped, "have other shapes"),
        (twice, "are there under another name, too"),
    )
    if wrong := [f"{told(names)} {fault}" for names, fault in faults if names]:
        raise ValueError(f"it is {upstream.title}: {'; '.join(wrong)}: {_cure(config, theirs)}")
    kept = tuple(name for name in ours if name.startswith(MODULE) and name not in plan.taken)
    return Plan(taken=plan.taken, compared=plan.compared, left_out=dict(plan.left_out), kept=kept)


def told(names: Sequence[str]) -> str:
    """How many, and the first three."""
    more = ", ..." if len(names) > 3 else ""
    return f"{len(names)} tensors ({', '.join(sorted(names)[:3])}{more})"


def _reshaped(rule: _Rule, theirs: Shape, ours: Shape) -> str:
    """How shapes differ, in words; "" where they agree."""
    if rule.height is not None and theirs[:1] != (rule.height,):
        return f"has {theirs[0] if theirs else 'no'} rows, the recipe's vocabulary and new tokens make {rule.height}"
    found = theirs
    if rule.rows is not None:
        if not theirs or any(not 0 <= row < theirs[0] for row in rule.rows):
            return f"has shape {list(theirs)}, rows {rule.rows[0]} to {rule.rows[-1]} are wanted"
        found = (len(rule.rows), *theirs[1:])
    if found == ours or (rule.filling and found[1:] == ours[1:] and found[0] < ours[0]):
        return ""
    return f"has {list(found)} there, {list(ours)} here"


def _missing(upstream: _Upstream, plan: Plan, ours: Mapping[str, Shape]) -> list[str]:
    found = plan.taken.keys()
    needed = {name for name in ours if name.startswith(MODULE) and re.fullmatch(upstream.needs, name)}
    for group in upstream.groups:
        if any(name.startswith(group) for name in found):
            needed |= {name for name in ours if name.startswith(group)}
    return sorted(name.removeprefix(MODULE) for name in needed - found)


def _cure(config: Any, theirs: Mapping[str, Shape]) -> str:
    heads = {"linear": {"vision_head.weight"}, "mlp": {"vision_head.0.weight", "vision_head.2.weight"}}
    if isinstance(config, MetaMorph):
        for head, names in heads.items():
            if config.head != head and {name.removeprefix("model.") for name in theirs} >= names:
                return f"its head is another: --set architecture.head={head}"
    return "choose the recipe of its sizes, or change it with --set"


# ---- rules

_OLD = _Rule(theirs=r".*\.rotary_emb\.inv_freq|.*\.embeddings\.position_ids", unread="computed anew")


def _metamorph(
    config: MetaMorph, theirs: Mapping[str, Shape], ours: Mapping[str, Shape], ids: int, added: Mapping[str, int]
) -> tuple[_Rule, ...]:
    """A whole language model, SigLIP in it or not."""
    words, marks, height = range(ids), range(ids, ids + 2), ids + 2
    tied = "module.backbone.lm_head.weight" not in ours
    rules = [
        _OLD,
        _Rule(
            theirs=r"model\.embed_tokens\.weight",
            ours="module.backbone.model.embed_tokens.weight",
            rows=words,
            height=height,
            filling=True,
        ),
        _Rule(theirs=r"model\.embed_tokens\.weight", ours="module.marks_in", rows=marks, height=height),
        _Rule(theirs=r"lm_head\.weight", ours="module.marks_out", rows=marks, height=height),
        _Rule(
            theirs=r"lm_head\.weight",
            ours="module.backbone.lm_head.weight",
            rows=words,
            height=height,
            filling=True,
        ),
        _Rule(theirs=r"model\.(layers\..+|norm\.weight)", ours=r"module.backbone.model.\1"),
        _Rule(theirs=r"model\.mm_projector\.([02]\.(?:weight|bias))", ours=r"module.adapter.\1"),
        _Rule(theirs=r"(?:model\.)?vision_head\.((?:[02]\.)?(?:weight|bias))", ours=r"module.head.\1"),
        _Rule(theirs=r"(?:model\.)?vision_proj\.(?:weight|bias)", unread="a layer that upstream never uses"),
        _Rule(
            theirs=r"model\.vision_tower\.(?:vision_tower\.)?(?:vision_model\.)?head\..+",
            unread="SigLIP's pooling head, which is not read",
        ),
        _Rule(
            theirs=r"model\.vision_tower\.(?:vision_tower\.)?(?:vision_model\.)?((?:embeddings|encoder|post_layernorm)\..+)",
            ours=r"encoder.network.\1",
        ),
    ]
    if tied and "lm_head.weight" not in theirs:
        rules.append(_Rule(theirs=r"model\.embed_tokens\.weight", ours="module.marks_out", rows=marks, height=height))
    return tuple(rules)


def _llava(
    config: MetaMorph, theirs: Mapping[str, Shape], ours: Mapping[str, Shape], ids: int, added: Mapping[str, int]
) -> tuple[_Rule, ...]:
    """The adapter of a first stage. Of the embedding that may come with it, whole or not, the last two rows are new."""
    rows = theirs.get("model.embed_tokens.weight", (2,))[:1]
    last = range(max(rows[0] - 2, 0), rows[0]) if rows else range(2)
    return (
        _Rule(theirs=r"model\.mm_projector\.([02]\.(?:weight|bias))", ours=r"module.adapter.\1"),
        _Rule(theirs=r"model\.embed_tokens\.weight", ours="module.marks_in", rows=last),
    )


# MetaQuery's connector: its layers' names -> ours
_LAYER = (
    (r"self_attn\.q_proj\.(weight|bias)", r"attention.queries.\2"),
    (r"self_attn\.k_proj\.(weight|bias)", r"attention.keys.\2"),
    (r"self_attn\.v_proj\.(weight|bias)", r"attention.values.\2"),
    (r"self_attn\.o_proj\.(weight)", r"attention.out.\2"),
    (r"self_attn\.q_norm\.(weight)", r"attention.query_norm.\2"),
    (r"self_attn\.k_norm\.(weight)", r"attention.key_norm.\2"),
    (r"input_layernorm\.(weight)", r"attention_norm.\2"),
    (r"post_attention_layernorm\.(weight)", r"mlp_norm.\2"),
    (r"mlp\.((?:gate|up|down)_proj\.weight)", r"mlp.\2"),
)


def _layers(at: str) -> tuple[_Rule, ...]:
    """The connector's transformer, whose layers stand at this name."""
    place = re.escape(at)
    return tuple(
        _Rule(theirs=rf"{place}\.layers\.(\d+)\.{theirs}", ours=rf"module.connector.encoder.layers.\1.{ours}")
        for theirs, ours in _LAYER
    )


def _metaquery(
    config: MetaQuery, theirs: Mapping[str, Shape], ours: Mapping[str, Shape], ids: int, added: Mapping[str, int]
) -> tuple[_Rule, ...]:
    """A whole MetaQuery; its language model's scores are an Identity and never saved."""
    llava = not isinstance(config.sizes, QwenVL)
    text = r"model\.mllm_backbone\.language_model\.model" if llava else r"model\.mllm_backbone\.model"
    published = ours["module.backbone.embed_tokens.weight"][0]
    count = ours["module.queries"][0]
    named = ["<begin_of_img>", "<end_of_img>", *(f"<img{number}>" for number in range(count))]
    height = published + count + 2
    rows = [added[name] for name in named] if added.keys() >= set(named) else range(published, height)
    words = rf"{text}\.embed_tokens\.weight"
    order = ("0", "1", "3") if config.connector.order == "enc_proj" else ("3", "0", "2")
    encoder, first, second = order
    towers = (
        (
            _Rule(
                theirs=r"model\.mllm_backbone\.vision_tower\.(?:vision_model\.)?head\..+",
                unread="SigLIP's pooling head, which is not read",
            ),
            _Rule(
                theirs=r"model\.mllm_backbone\.vision_tower\.(?:vision_model\.)?((?:embeddings|encoder|post_layernorm)\..+)",
                ours=r"encoder.tower.network.\1",
            ),
            _Rule(theirs=r"model\.mllm_backbone\.multi_modal_projector\.(.+)", ours=r"encoder.tower.projector.\1"),
            _Rule(theirs=r"model\.mllm_backbone\.image_newline", ours="encoder.tower.newline"),
        )
        if llava
        else (_Rule(theirs=r"model\.mllm_backbone\.visual\.(.+)", ours=r"encoder.tower.network.\1"),)
    )
    return (
        _OLD,
        _Rule(theirs=words, ours="module.backbone.embed_tokens.weight", rows=range(published), height=height),
        _Rule(theirs=words, ours="module.marks", rows=rows[:2], height=height),
        _Rule(theirs=words, ours="module.queries", rows=rows[2:], height=height),
        _Rule(theirs=rf"{text}\.(layers\..+|norm\.weight)", ours=r"module.backbone.\1"),
        *towers,
        *_layers(f"model.connector.{encoder}"),
        _Rule(theirs=rf"model\.connector\.{first}\.(weight|bias)", ours=r"module.connector.projection.0.\1"),
        _Rule(theirs=rf"model\.connector\.{second}\.(weight|bias)", ours=r"module.connector.projection.2.\1"),
        _Rule(theirs=r"model\.connector\.4\.weight", ours="module.connector.norm.weight"),
        _Rule(theirs=r"model\.(?:transformer|unet)\.(.+)", ours=r"module.decoder.network.\1"),
        _Rule(theirs=r"vae\.(.+)", ours=r"encoder.canvas.vae.\1"),
    )


def _openuni(
    config: MetaQuery, theirs: Mapping[str, Shape], ours: Mapping[str, Shape], ids: int, added: Mapping[str, int]
) -> tuple[_Rule, ...]:
    """What fits a MetaQuery: queries, a connector of MetaQuery's kind, the decoder. It has no marks around queries."""
    return (
        _OLD,
        _Rule(theirs=r"meta_queries", ours="module.queries"),
        *_layers("connector"),
        _Rule(
            theirs=r"connector\.layers\.\d+\.(?:layer_norm\d|mlp\.fc\d|self_attn\.out_proj)\..+",
            refused="its connector is a SigLIP's encoder, a MetaQuery's a Qwen2's: train it with MetaQuery's connector",
        ),
        _Rule(theirs=r"projector\.([02]\.(?:weight|bias))", ours=r"module.connector.projection.\1"),
        _Rule(theirs=r"projector\.3\.weight", ours="module.connector.norm.weight"),
        _Rule(
            theirs=r"(?:lmm|llm)\..+",
            refused="its language model is an InternVL3, which no recipe here has; a file without it can be read",
        ),
        _Rule(theirs=r"transformer\.(.+)", ours=r"module.decoder.network.\1"),
        _Rule(theirs=r"vae\.(.+)", ours=r"encoder.canvas.vae.\1"),
    )


UPSTREAMS: dict[Kind, _Upstream] = {
    "metamorph": _Upstream(
        title="a run of MetaMorph's official trainer", into=MetaMorph, needs=r".+", groups=(), rules=_metamorph
    ),
    "metaquery": _Upstream(
        title="a run of MetaQuery's official trainer",
        into=MetaQuery,
        needs=r"(?!module\.head\.).+",
        groups=(),
        rules=_metaquery,
    ),
    "openuni": _Upstream(
        title="weights of OpenUni",
        into=MetaQuery,
        needs=r"module\.(?:queries|connector\..+)",
        groups=("module.decoder.",),
        rules=_openuni,
    ),
    "llava": _Upstream(
        title="an mm_projector.bin", into=MetaMorph, needs=r"module\.adapter\..+", groups=(), rules=_llava
    ),
}
