"""What upstream trainers saved lands where it should; what does not fit, or may not be trusted, does not.

The tensors are made here, by upstream's names and shapes, for tiny models.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import by_hand
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.configs import MetaMorph, MetaQuery
from models.interface import Asked
from models.parts import (
    Connector,
    Llama,
    LlavaOneVision,
    Pixels,
    QwenVision,
    QwenVL,
    Sana,
    SanaTransformer,
    Siglip,
    StableUNet,
    UNet,
)
from models.vision import VisionEncoder
from pipelines import checkpoint, model_export, model_import, recipe, sample
from pipelines.__main__ import main
from pipelines.training import Training

Tensors = dict[str, Tensor]

LLAMA = Llama(width=32, layers=2, heads=4, kv_heads=2, ffn=48)
SIGLIP = Siglip(picture=32, patch=8, width=16, layers=1, heads=2, ffn=32)
MORPH = MetaMorph(backbone=LLAMA, vision=SIGLIP, grid=2, head="mlp")
QWEN = QwenVL(
    vision=QwenVision(patch=4, merge=2, window=16, width=16, layers=2, heads=2, ffn=24, whole=(1,)),
    text=replace(LLAMA, heads=2, kv_heads=1, family="qwen2", max_positions=1024),
    sections=(2, 3, 3),
)
QUERY = MetaQuery(
    backbone=QWEN,
    decoder=Sana(
        canvas=Pixels(side=16),
        network=SanaTransformer(layers=1, heads=2, head_width=8, cross_heads=2, condition_width=16, patch=2),
    ),
    connector=Connector(layers=2, head_width=16),
    queries=5,
    system="",
)
IDS = 261  # of the byte tokenizer


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def drawn(*shape: int) -> Tensor:
    """Random numbers that bfloat16 holds."""
    return torch.randn(shape).bfloat16().float()


# ---- what upstream trainers save, tensor by tensor


def decoder_layer(at: str, width: int, keys: int, ffn: int, *, biases: bool) -> Tensors:
    """One of transformers' layers, a Llama's or a Qwen2's."""
    made = {
        f"{at}.self_attn.q_proj.weight": drawn(width, width),
        f"{at}.self_attn.k_proj.weight": drawn(keys, width),
        f"{at}.self_attn.v_proj.weight": drawn(keys, width),
        f"{at}.self_attn.o_proj.weight": drawn(width, width),
        f"{at}.mlp.gate_proj.weight": drawn(ffn, width),
        f"{at}.mlp.up_proj.weight": drawn(ffn, width),
        f"{at}.mlp.down_proj.weight": drawn(width, ffn),
        f"{at}.input_layernorm.weight": drawn(width),
        f"{at}.post_attention_layernorm.weight": drawn(width),
    }
    if biases:
        made |= {
            f"{at}.self_attn.{part}_proj.bias": drawn(size) for part, size in (("q", width), ("k", keys), ("v", keys))
        }
    return made


def metamorph_run() -> Tensors:
    """A second stage of facebookresearch/metamorph: two rows more than ids, an mlp head, a layer that nobody uses."""
    made = {
        "model.embed_tokens.weight": drawn(IDS + 2, 32),
        "lm_head.weight": drawn(IDS + 2, 32),
        "model.norm.weight": drawn(32),
        "model.mm_projector.0.weight": drawn(32, 16),
        "model.mm_projector.0.bias": drawn(32),
        "model.mm_projector.2.weight": drawn(32, 32),
        "model.mm_projector.2.bias": drawn(32),
        "vision_head.0.weight": drawn(32, 32),
        "vision_head.0.bias": drawn(32),
        "vision_head.2.weight": drawn(16, 32),
        "vision_head.2.bias": drawn(16),
        "model.vision_proj.weight": drawn(32, 64),
        "model.vision_proj.bias": drawn(32),
    }
    for number in range(2):
        made |= decoder_layer(f"model.layers.{number}", 32, 16, 48, biases=False)
    return made


def siglip_tower(at: str, network: Any) -> Tensors:
    """A frozen SigLIP inside, with the pooling head that ours lacks, kept in bfloat16."""
    made = {f"{at}{name}": value.to(torch.bfloat16) for name, value in network.state_dict().items()}
    return made | {f"{at}head.probe": drawn(1, 1, 16), f"{at}head.mlp.fc1.weight": drawn(32, 16)}


def metaquery_connector(
    at: str, *, order: str = "enc_proj", layers: int = 2, width: int = 32, out: int = 16
) -> Tensors:
    """A Sequential of a Qwen2-like encoder, Linear, GELU, Linear and a norm, or with the encoder before the norm."""
    encoder, first, second, inside = (0, 1, 3, width) if order == "enc_proj" else (3, 0, 2, out)
    made = {
        f"{at}.{first}.weight": drawn(out, width),
        f"{at}.{first}.bias": drawn(out),
        f"{at}.{second}.weight": drawn(out, out),
        f"{at}.{second}.bias": drawn(out),
        f"{at}.4.weight": drawn(out),
    }
    for number in range(layers):
        place = f"{at}.{encoder}.layers.{number}"
        made |= decoder_layer(place, inside, inside, 4 * inside, biases=True)
        made |= {f"{place}.self_attn.{part}_norm.weight": drawn(16) for part in "qk"}
    return made


def metaquery_run(config: MetaQuery = QUERY, *, words: Tensor | None = None) -> Tensors:
    """facebookresearch/metaquery beside the frozen parts of this config, whose rows of words may have decayed."""
    built: Any = config.build()
    qwen = isinstance(config.backbone, QwenVL)
    text = "model.mllm_backbone.model." if qwen else "model.mllm_backbone.language_model.model."
    made = {f"{text}{name}": value.clone() for name, value in built.module.backbone.state_dict().items()}
    old = made[f"{text}embed_tokens.weight"] if words is None else words
    made[f"{text}embed_tokens.weight"] = torch.cat([old, drawn(2 + config.queries, 32)])
    tower = built.encoder.tower
    if qwen:
        made |= {f"model.mllm_backbone.visual.{name}": value for name, value in tower.network.state_dict().items()}
    else:
        made |= siglip_tower("model.mllm_backbone.vision_tower.vision_model.", tower.network)
        made |= {
            f"model.mllm_backbone.multi_modal_projector.{name}": value
            for name, value in tower.projector.state_dict().items()
        }
        made["model.mllm_backbone.image_newline"] = tower.newline.detach()
    network = built.module.decoder.network.state_dict()
    made |= {f"model.transformer.{name}": drawn(*value.shape) for name, value in network.items()}
    return made | metaquery_connector("model.connector", order=config.connector.order, layers=config.connector.layers)


def openuni_file() -> Tensors:
    """What fits of wusize/OpenUni: queries, a connector of MetaQuery's kind, a projector; no decoder, it was frozen."""
    made = metaquery_connector("connector")
    renamed = {"connector.1": "projector.0", "connector.3": "projector.2", "connector.4": "projector.3"}
    found = {"meta_queries": drawn(5, 32)}
    for name, value in made.items():
        place, _, rest = name.rpartition(".")
        found[f"{renamed[place]}.{rest}" if place in renamed else name.replace("connector.0.", "connector.")] = value
    return found


def folder(place: Path, tensors: Tensors, *, shards: int = 1) -> Path:
    """As transformers' trainer leaves it: one file of safetensors, or several and an index."""
    place.mkdir(parents=True)
    held = {name: value.contiguous().clone() for name, value in tensors.items()}
    if shards == 1:
        save_file(held, place / "model.safetensors")
        return place
    names = sorted(held)
    listed = {}
    for number in range(shards):
        file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        mine = names[number::shards]
        save_file({name: held[name] for name in mine}, place / file)
        listed |= dict.fromkeys(mine, file)
    (place / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": listed}))
    return place


def taken(place: Path, tmp_path: Path, architecture: Any, **options: Any) -> model_import.Imported:
    training = by_hand.training(architecture)
    return model_import.imported(place, training, tmp_path / "root", recipe_name="by_hand:made", **options)


def loaded(done: model_import.Imported) -> Any:
    """The module of a run that was imported."""
    return sample.Run(done.run).architecture.module


# ---- where it lands


def test_a_metamorph_run_lands_in_backbone_adapter_head_and_marks(tmp_path: Path) -> None:
    tensors = metamorph_run() | siglip_tower("model.vision_tower.vision_tower.", VisionEncoder(SIGLIP, grid=2).network)
    done = taken(folder(tmp_path / "upstream", tensors, shards=3), tmp_path, MORPH)
    module = loaded(done)
    backbone, words, scores = module.backbone, tensors["model.embed_tokens.weight"], tensors["lm_head.weight"]
    assert torch.equal(backbone.model.embed_tokens.weight, words[:IDS])
    assert torch.equal(module.marks_in, words[IDS:])
    assert torch.equal(backbone.lm_head.weight, scores[:IDS])
    assert torch.equal(module.marks_out, scores[IDS:])
    assert torch.equal(module.adapter[2].bias, tensors["model.mm_projector.2.bias"])
    assert torch.equal(module.head[2].weight, tensors["vision_head.2.weight"])
    for name in ("layers.1.self_attn.k_proj.weight", "layers.0.mlp.down_proj.weight", "norm.weight"):
        assert torch.equal(backbone.model.get_parameter(name), tensors[f"model.{name}"])
    assert set(done.taken) == {name for name, _ in module.named_parameters()} and not done.kept
    assert done.left_out == {
        "a layer that upstream never uses": ["model.vision_proj.bias", "model.vision_proj.weight"],
        "SigLIP's pooling head, which is not read": [
            f"model.vision_tower.vision_tower.head.{name}" for name in ("mlp.fc1.weight", "probe")
        ],
    }
    assert done.compared == len(VisionEncoder(SIGLIP, grid=2).state_dict())


def test_rows_beyond_the_tokenizer_and_a_tied_matrix_stay_in_their_places(tmp_path: Path) -> None:
    config = replace(MORPH, backbone=replace(LLAMA, vocabulary=300, tied=True))
    tensors = metamorph_run()
    del tensors["lm_head.weight"]  # safetensors keeps a tied matrix once
    module = loaded(taken(folder(tmp_path / "upstream", tensors), tmp_path, config))
    words = tensors["model.embed_tokens.weight"]
    assert torch.equal(module.backbone.lm_head.weight[:IDS], words[:IDS])
    assert torch.equal(module.backbone.lm_head.weight[IDS:], config.build().module.backbone.lm_head.weight[IDS:])  # pyright: ignore
    assert torch.equal(module.marks_in, words[IDS:]) and torch.equal(module.marks_out, words[IDS:])


@pytest.mark.parametrize("order", ["enc_proj", "proj_enc"])
def test_a_metaquery_run_lands_in_queries_marks_connector_and_decoder(order: Any, tmp_path: Path) -> None:
    config = replace(QUERY, connector=replace(QUERY.connector, order=order, head_width=16))
    tensors = metaquery_run(config)
    done = taken(folder(tmp_path / "upstream", tensors, shards=2), tmp_path, config)
    module = loaded(done)
    rows = tensors["model.mllm_backbone.model.embed_tokens.weight"]
    assert torch.equal(module.marks, rows[IDS : IDS + 2])
    assert torch.equal(module.queries, rows[IDS + 2 :])
    encoder, first, norm = (0, 1, 4) if order == "enc_proj" else (3, 0, 4)
    layer, at = module.connector.encoder.layers[1], f"model.connector.{encoder}.layers.1"
    assert torch.equal(layer.attention.queries.bias, tensors[f"{at}.self_attn.q_proj.bias"])
    assert torch.equal(layer.attention.key_norm.weight, tensors[f"{at}.self_attn.k_norm.weight"])
    assert torch.equal(layer.attention.out.weight, tensors[f"{at}.self_attn.o_proj.weight"])
    assert torch.equal(layer.attention_norm.weight, tensors[f"{at}.input_layernorm.weight"])
    assert torch.equal(layer.mlp_norm.weight, tensors[f"{at}.post_attention_layernorm.weight"])
    assert torch.equal(layer.mlp.gate_proj.weight, tensors[f"{at}.mlp.gate_proj.weight"])
    assert torch.equal(module.connector.projection[0].weight, tensors[f"model.connector.{first}.weight"])
    assert torch.equal(module.connector.norm.weight, tensors[f"model.connector.{norm}.weight"])
    assert torch.equal(module.decoder.network.proj_out.bias, tensors["model.transformer.proj_out.bias"])
    assert not any(name.startswith("backbone.") for name in done.taken) and done.same > 20  # frozen, and as they were


def test_a_metaquery_beside_llava_onevision_reads_its_own_names(tmp_path: Path) -> None:
    config = replace(QUERY, backbone=LlavaOneVision(vision=SIGLIP, text=QWEN.text))
    tensors = metaquery_run(config)
    done = taken(folder(tmp_path / "upstream", tensors), tmp_path, config)
    rows = tensors["model.mllm_backbone.language_model.model.embed_tokens.weight"]
    assert torch.equal(loaded(done).queries, rows[IDS + 2 :])
    assert done.compared == len(config.build().encoder.tower.state_dict())  # pyright: ignore


def test_the_trainers_tokenizer_says_which_rows_are_queries(tmp_path: Path) -> None:
    tensors = metaquery_run()
    place = folder(tmp_path / "upstream", tensors)
    names = [*(f"<img{number}>" for number in range(5)), "<end_of_img>", "<begin_of_img>"]
    (place / "added_tokens.json").write_text(json.dumps({name: IDS + number for number, name in enumerate(names)}))
    module = loaded(taken(place, tmp_path, QUERY))
    rows = tensors["model.mllm_backbone.model.embed_tokens.weight"]
    assert torch.equal(module.queries, rows[IDS : IDS + 5])
    assert torch.equal(module.marks, rows[[IDS + 6, IDS + 5]])


def test_words_that_decayed_upstream_are_taken_and_told(tmp_path: Path) -> None:
    """Its queries were trained beside them, so they are part of what it learned."""
    old: Any = QUERY.build().module
    words = 0.8 * old.backbone.embed_tokens.weight.detach()
    done = taken(folder(tmp_path / "upstream", metaquery_run(words=words)), tmp_path, QUERY)
    assert torch.equal(loaded(done).backbone.embed_tokens.weight, words)
    assert done.changed == ("backbone.embed_tokens.weight",)
    assert "1 of these are frozen, and others than its sources: backbone 1" in "\n".join(done.lines())


def test_openuni_gives_queries_and_connector_and_the_rest_is_listed(tmp_path: Path) -> None:
    tensors = openuni_file()
    (tmp_path / "upstream").mkdir()
    torch.save({"state_dict": tensors}, tmp_path / "upstream" / "openuni.pth")
    done = taken(tmp_path / "upstream", tmp_path, QUERY)
    module, fresh = loaded(done), QUERY.build().module
    assert torch.equal(module.queries, tensors["meta_queries"])
    assert torch.equal(module.connector.norm.weight, tensors["projector.3.weight"])
    assert torch.equal(module.connector.projection[2].bias, tensors["projector.2.bias"])
    assert torch.equal(module.marks, fresh.marks) and "marks" in done.kept  # pyright: ignore
    assert any(line.strip().startswith("not in it, so as the recipe has them") for line in done.lines())


def test_openunis_own_backbone_and_connector_are_refused_with_the_reason(tmp_path: Path) -> None:
    lmm = openuni_file() | {"lmm.language_model.model.norm.weight": drawn(32)}
    with pytest.raises(ValueError, match="its language model is an InternVL3, which no recipe here has"):
        taken(folder(tmp_path / "lmm", lmm), tmp_path, QUERY)
    siglip = openuni_file() | {"connector.layers.0.layer_norm1.weight": drawn(32)}
    with pytest.raises(ValueError, match="its connector is a SigLIP's encoder"):
        taken(folder(tmp_path / "siglip", siglip), tmp_path, QUERY)


@pytest.mark.parametrize("rows", [2, IDS + 2])
def test_an_mm_projector_is_the_adapter_alone(rows: int, tmp_path: Path) -> None:
    tensors = {name: value.half() for name, value in metamorph_run().items() if "mm_projector" in name}
    tensors["model.embed_tokens.weight"] = drawn(rows, 32)
    (tmp_path / "upstream").mkdir()
    torch.save(tensors, tmp_path / "upstream" / "mm_projector.bin")
    done = taken(tmp_path / "upstream", tmp_path, MORPH)
    module, fresh = loaded(done), MORPH.build().module
    assert torch.equal(module.adapter[0].weight, tensors["model.mm_projector.0.weight"].float())
    assert torch.equal(module.marks_in, tensors["model.embed_tokens.weight"][-2:])
    assert torch.equal(module.marks_out, fresh.marks_out)  # pyright: ignore
    assert set(done.taken) == {
        "marks_in",
        *(f"adapter.{part}" for part in ("0.weight", "0.bias", "2.weight", "2.bias")),
    }
    held = load_file(done.run / "checkpoints/step-000000/parameters.safetensors")
    assert held.keys() == set(done.taken) and {value.dtype for value in held.values()} == {torch.float32}


# ---- what becomes of it


def test_an_imported_run_answers_and_is_exported(tmp_path: Path) -> None:
    tensors = metaquery_run()
    done = taken(folder(tmp_path / "upstream", tensors), tmp_path, QUERY)
    run = sample.Run(done.run)
    asked = Asked(answer="picture", steps=2)
    painted = run.architecture.answer([("user", ("a cat",))], [], asked, task="text_to_image", key="k").parts[0]
    assert painted.shape == (3, 16, 16) and painted.isfinite().all()
    model_export.export(done.run, tmp_path / "out")
    assert torch.equal(
        load_file(tmp_path / "out/transformer/diffusion_pytorch_model.safetensors")["proj_out.weight"],
        tensors["model.transformer.proj_out.weight"],
    )


def test_the_same_import_again_finds_its_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = folder(tmp_path / "upstream", metamorph_run())
    first, again = taken(place, tmp_path, MORPH), taken(place, tmp_path, MORPH)
    assert first.run == again.run and "already imported" in capsys.readouterr().out
    assert [path.name for path in first.run.parent.iterdir()] == [first.run.name]
    other = taken(folder(tmp_path / "other", metamorph_run()), tmp_path, MORPH)
    assert other.run != first.run and other.run.is_dir()


def test_the_command_lists_what_was_taken_and_names_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny = recipe.load("metamorph:tiny").architecture
    width, channels = tiny.backbone.width, tiny.vision.width
    (tmp_path / "upstream").mkdir()
    tensors = {
        "model.mm_projector.0.weight": drawn(width, channels),
        "model.mm_projector.0.bias": drawn(width),
        "model.mm_projector.2.weight": drawn(width, width),
        "model.mm_projector.2.bias": drawn(width),
    }
    torch.save(tensors, tmp_path / "upstream" / "mm_projector.bin")
    words = ["import-model", str(tmp_path / "upstream"), "--as", "metamorph:tiny", "--root", str(tmp_path / "root")]
    with pytest.raises(SystemExit, match="0"):
        main([*words, "--set", "batch=3"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "read as an mm_projector.bin: 4 weights taken, adapter 4"
    run = Path(lines[-1])
    assert run.parent == tmp_path / "root" / "trainings" and run.name.startswith("metamorph-tiny-imported-")
    assert sample.read_training(run).batch == 3
    assert json.loads((run / "import.json").read_bytes())["format"] == "llava"
    with pytest.raises(SystemExit, match="2"):
        main([*words[:3], "transfusion:tiny", *words[4:]])
    assert "becomes a MetaMorph, and the recipe's architecture is a Transfusion" in capsys.readouterr().err


# ---- what does not fit


def refused(place: Path, tmp_path: Path, architecture: Any, **options: Any) -> str:
    """The one line that an import ends with; nothing is written."""
    with pytest.raises(ValueError) as caught:
        taken(place, tmp_path, architecture, **options)
    said = str(caught.value)
    assert "\n" not in said and str(place) in said, said
    assert not list((tmp_path / "root").rglob("*.safetensors"))
    return said


Change = Callable[[Tensors], Any]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda t: t.update({"model.layers.9.mlp.down_proj.weight": drawn(32, 48)}), "1 tensors (model.layers.9."),
        (lambda t: t.update({f"extra.{n}": drawn(1) for n in range(5)}), "5 tensors (extra.0, extra.1, extra.2, ...)"),
        (lambda t: t.pop("model.norm.weight"), "1 tensors (backbone.model.norm.weight) of the recipe's"),
        (lambda t: t.pop("model.mm_projector.0.bias"), "(adapter.0.bias) of the recipe's architecture are not in it"),
        (
            lambda t: t.update({"model.norm.weight": drawn(31)}),
            "(model.norm.weight has [31] there, [32] here) have other shapes",
        ),
        (
            lambda t: t.update({"lm_head.weight": drawn(IDS + 1, 32)}),
            f"lm_head.weight has {IDS + 1} rows, the recipe's vocabulary and new tokens make {IDS + 2}",
        ),
        (lambda t: t.update({"lm_head.weight": drawn()}), "lm_head.weight has no rows"),
        (
            lambda t: t.update({"model.vision_head.2.bias": drawn(16)}),
            "vision_head.2.bias) are there under another name, too",
        ),
        (
            lambda t: t.update({"model.norm.weight": torch.ones(32, dtype=torch.int8)}),
            "is torch.int8",
        ),
    ],
)
def test_what_does_not_fit_is_counted_and_named(change: Change, told: str, tmp_path: Path) -> None:
    tensors = metamorph_run()
    change(tensors)
    assert told in refused(folder(tmp_path / "upstream", tensors), tmp_path, MORPH)


def test_a_recipe_with_another_head_is_told_which_to_set(tmp_path: Path) -> None:
    place = folder(tmp_path / "upstream", metamorph_run())
    assert "--set architecture.head=mlp" in refused(place, tmp_path, replace(MORPH, head="linear"))


def test_another_frozen_encoder_than_the_recipes_is_refused(tmp_path: Path) -> None:
    other = VisionEncoder(replace(SIGLIP, seed=1), grid=2).network
    tensors = metamorph_run() | siglip_tower("model.vision_tower.vision_tower.", other)
    said = refused(folder(tmp_path / "upstream", tensors), tmp_path, MORPH)
    assert "of its frozen encoders are others than the recipe's" in said


def test_another_number_of_queries_or_another_decoder_is_refused(tmp_path: Path) -> None:
    place = folder(tmp_path / "upstream", metaquery_run())
    assert "rows, the recipe's vocabulary and new tokens make" in refused(place, tmp_path, replace(QUERY, queries=4))
    unet = UNet(picture=16, channels=(8, 16), attends=(False, True), layers_per_block=1, condition_width=16, heads=2)
    painted = replace(QUERY, decoder=StableUNet(canvas=Pixels(side=16), network=unet))
    assert "have no place in the recipe's architecture" in refused(place, tmp_path, painted)


def test_names_of_no_trainer_are_refused_and_a_wrong_format_too(tmp_path: Path) -> None:
    place = folder(tmp_path / "unknown", {"transformer.h.0.attn.weight": drawn(2, 2)})
    assert "are of no trainer that is known here" in refused(place, tmp_path, MORPH)
    place = folder(tmp_path / "morph", metamorph_run())
    assert "have no place" in refused(place, tmp_path, MORPH, kind="llava")
    assert "which becomes a MetaQuery" in refused(place, tmp_path, MORPH, kind="openuni")


# ---- what may not be trusted


class Bomb:
    """Runs when it is unpickled by a reader that trusts it."""

    def __reduce__(self) -> Any:
        return Path.touch, (Path(self.mark),)

    mark: str


def test_a_pickle_with_more_than_tensors_is_never_run(tmp_path: Path) -> None:
    bomb = Bomb()
    bomb.mark = str(tmp_path / "ran")
    place = tmp_path / "upstream"
    place.mkdir()
    torch.save({"model.mm_projector.0.weight": drawn(2, 2), "state": bomb}, place / "mm_projector.bin")
    assert "pickles more than tensors" in refused(place, tmp_path, MORPH)
    (place / "mm_projector.bin").write_bytes(pickle.dumps(bomb, protocol=2))
    assert "pickles more than tensors" in refused(place, tmp_path, MORPH)
    assert not (tmp_path / "ran").exists()
    torch.save([drawn(2)], place / "mm_projector.bin")
    assert "holds other things than tensors by name" in refused(place, tmp_path, MORPH)
    (place / "mm_projector.bin").write_bytes(b"PK\x03\x04 no zip")
    assert "is damaged or cut short" in refused(place, tmp_path, MORPH)


@pytest.mark.parametrize("elsewhere", ["../secret.safetensors", "/etc/secret.safetensors", ".safetensors", 3, None])
def test_an_index_names_files_beside_it_alone(elsewhere: Any, tmp_path: Path) -> None:
    place = folder(tmp_path / "upstream", metamorph_run(), shards=2)
    save_file({"x": drawn(1)}, tmp_path / "secret.safetensors")
    index = place / "model.safetensors.index.json"
    listed = json.loads(index.read_bytes())
    listed["weight_map"]["model.norm.weight"] = elsewhere
    index.write_text(json.dumps(listed))
    assert "it may name .safetensors files beside it alone" in refused(place, tmp_path, MORPH)


def test_damaged_files_are_one_line_each(tmp_path: Path) -> None:
    place = folder(tmp_path / "upstream", metamorph_run(), shards=2)
    shard, index = place / "model-00002-of-00002.safetensors", place / "model.safetensors.index.json"
    whole, listed = shard.read_bytes(), index.read_text()
    shard.write_bytes(whole[:-100])
    assert "model-00002-of-00002.safetensors is damaged or cut short" in refused(place, tmp_path, MORPH)
    shard.write_bytes(b"\xff" * 8 + whole[8:])
    assert "is damaged or cut short" in refused(place, tmp_path, MORPH)
    shard.unlink()
    assert "model-00002-of-00002.safetensors is missing" in refused(place, tmp_path, MORPH)
    shard.write_bytes(whole)
    lying = json.loads(listed)
    lying["weight_map"]["model.ghost"] = shard.name
    index.write_text(json.dumps(lying))
    assert "its index lists 1 tensors (model.ghost) that its files lack" in refused(place, tmp_path, MORPH)
    for text in ("{", "[" * 100_000, "[]", '{"weight_map": []}', "\xff"):
        index.write_bytes(text.encode("latin-1"))
        assert "model.safetensors.index.json" in refused(place, tmp_path, MORPH)


def test_a_folder_without_weights_says_what_is_wanted(tmp_path: Path) -> None:
    (tmp_path / "upstream" / "checkpoint-900").mkdir(parents=True)
    (tmp_path / "upstream" / "checkpoint-1000").mkdir()
    assert f"give {tmp_path / 'upstream' / 'checkpoint-1000'}" in refused(tmp_path / "upstream", tmp_path, MORPH)
    assert "is no folder" in refused(tmp_path / "none", tmp_path, MORPH)


def test_a_training_may_start_from_an_import(tmp_path: Path) -> None:
    tensors = metamorph_run()
    done = taken(folder(tmp_path / "upstream", tensors), tmp_path, MORPH)
    module = MORPH.build().module
    told, names = checkpoint.start_from(done.run, module)
    assert told.endswith(f"{len(done.taken)} weights taken, 0 trained ones begin anew") and names == set(done.taken)
    assert torch.equal(module.get_parameter("adapter.0.bias"), tensors["model.mm_projector.0.bias"])
    assert isinstance(sample.read_training(done.run), Training)
