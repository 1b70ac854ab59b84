"""What export-model writes opens in transformers and diffusers and is the run; what is frozen is as published."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import by_hand
import diffusers
import open_clip
import pytest
import timm
import tokenizers
import torch
import transformers
from safetensors.torch import load_file, save_file
from timm.models import register_model
from timm.models.vision_transformer import VisionTransformer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor

from models import multimodal
from models.configs import LMFusion, MetaMorph, MetaQuery
from models.decoders import random_stable_unet
from models.layout import CONTROL
from models.parts import (
    Connector,
    Latents,
    LinearCoder,
    Llama,
    Lora,
    OpenClip,
    Pixels,
    Pretrained,
    QwenVision,
    QwenVL,
    Siglip,
    StableUNet,
    UNet,
    Vae,
)
from models.transformer import random_language_model
from models.vision import random_siglip, random_vae
from pipelines import checkpoint, model_export, recipe, sample
from pipelines.__main__ import main

LLAMA = Llama(width=32, layers=2, heads=4, kv_heads=2, ffn=48, vocabulary=261)
SIGLIP = Siglip(picture=32, patch=8, width=16, layers=1, heads=2, ffn=32)
VAE = Vae(channels=(8, 8), latent_channels=4, layers_per_block=1, scale=0.5, groups=4)
UNET = UNet(picture=8, channels=(8, 16), attends=(False, True), layers_per_block=1, condition_width=16, heads=2)
QWEN = QwenVL(
    vision=QwenVision(patch=4, merge=2, window=16, width=16, layers=2, heads=2, ffn=24, whole=(1,)),
    text=replace(LLAMA, heads=2, kv_heads=1, family="qwen2", max_positions=1024, vocabulary=280),
    sections=(2, 3, 3),
)
RECIPES = (
    "metamorph:tiny",
    "metamorph:tiny_visualizer",
    "transfusion:tiny",
    "lmfusion:tiny",
    "llavafusion:tiny",
    "metaquery:tiny",
)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@dataclass(frozen=True)
class Exported:
    """A run of a recipe, and what was exported of it."""

    run: sample.Run
    out: Path

    @property
    def told(self) -> dict[str, Any]:
        return json.loads((self.out / "interlace.json").read_bytes())

    def opened(self, folder: str) -> Any:
        """A part as its library opens it, nothing left over or filled in."""
        kind = self.told["folders"][folder]["opens"]
        library, _, name = kind.partition(".")
        opener = getattr({"transformers": transformers, "diffusers": diffusers}[library], name)
        if not hasattr(opener, "forward"):
            return opener.from_pretrained(self.out / folder)
        model, report = opener.from_pretrained(self.out / folder, output_loading_info=True)
        assert not any(report[fault] for fault in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
        return model.eval()


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Exported]:
    """A recipe's name -> its export, made once."""
    made: dict[str, Exported] = {}

    def of(name: str) -> Exported:
        if name not in made:
            folder = by_hand.run(tmp_path_factory.mktemp("runs") / "run", recipe.load(name).architecture)
            model_export.export(folder, folder / "exported")
            made[name] = Exported(sample.Run(folder), folder / "exported")
        return made[name]

    return of


def named(run: sample.Run) -> dict[str, Tensor]:
    roots = {"module.": run.architecture.module, "encoder.": run.architecture.encoder}
    return {f"{at}{name}": value for at, root in roots.items() for name, value in root.state_dict().items()}


@pytest.mark.parametrize("name", RECIPES)
def test_every_tensor_of_a_run_is_in_one_place_that_its_library_opens(
    name: str, exported: Callable[[str], Exported]
) -> None:
    done = exported(name)
    tensors = named(done.run)
    found: list[str] = []
    for folder, part in done.told["folders"].items():
        model = done.opened(folder)
        state = model.state_dict() if hasattr(model, "state_dict") else {}
        for ours, theirs in part["holds"].items():
            held = [each for each in tensors if each.startswith(ours)]
            for each in held if folder != "picture_tower" else ():
                assert torch.equal(state[f"{theirs}{each.removeprefix(ours)}"], tensors[each]), each
            if folder == "picture_tower":
                assert all(torch.equal(state[each.removeprefix(ours)], tensors[each]) for each in held)
            found += held
    rest = load_file(done.out / "interlace.safetensors")
    assert all(torch.equal(value, tensors[f"module.{each}"]) for each, value in rest.items())
    assert {each: list(value.shape) for each, value in rest.items()} == done.told["files"]["interlace.safetensors"]
    assert sorted([*found, *(f"module.{each}" for each in rest)]) == sorted(tensors)
    assert recipe.rebuild(done.told["architecture"]) == done.run.config


@torch.no_grad()
def test_a_language_model_scores_as_the_run_does(exported: Callable[[str], Exported]) -> None:
    done, ids = exported("metamorph:tiny"), torch.arange(40)[None]
    there = transformers.AutoModelForCausalLM.from_pretrained(done.out / "language_model").eval()
    assert torch.equal(there(ids).logits, done.run.architecture.module.backbone(ids).logits)


@torch.no_grad()
def test_a_vision_encoder_sees_as_the_run_does(exported: Callable[[str], Exported]) -> None:
    done, pixels = exported("metamorph:tiny"), torch.rand(1, 3, 64, 64)
    there = transformers.AutoModel.from_pretrained(done.out / "vision").eval()
    layers = there(pixels, output_hidden_states=True).hidden_states
    torch.testing.assert_close(layers[-1], done.run.architecture.encoder.layers(pixels))


@torch.no_grad()
@pytest.mark.parametrize("separation", ["deep", "shallow", "none"])
def test_a_picture_tower_reads_pictures_as_the_run_does(separation: Any, tmp_path: Path) -> None:
    config = LMFusion(backbone=LLAMA, canvas=Pixels(side=16), coder=LinearCoder(patch=8), separation=separation)
    folder = by_hand.run(tmp_path / "run", config)
    model_export.export(folder, tmp_path / "out")
    done = Exported(sample.Run(folder), tmp_path / "out")
    if separation == "none":  # pictures run through the language model
        assert "picture_tower" not in done.told["folders"]
        return
    tower, module = done.opened("picture_tower"), done.run.architecture.module
    inputs, position = torch.randn(1, 6, 32), torch.arange(6)[None]
    sight = torch.ones(1, 1, 6, 6, dtype=torch.bool).tril()
    pictures = torch.ones(1, 6, dtype=torch.bool)
    torch.testing.assert_close(
        tower(inputs_embeds=inputs).last_hidden_state, module.run(inputs, pictures, sight, position)
    )
    words = module.run(inputs, ~pictures, sight, position)
    assert not torch.allclose(tower(inputs_embeds=inputs).last_hidden_state, words)


@torch.no_grad()
def test_a_vision_language_model_reads_and_scores_as_the_run_does(exported: Callable[[str], Exported]) -> None:
    done, ids = exported("metaquery:tiny"), torch.arange(40)[None]
    there, module = done.opened("vision_language"), done.run.architecture.module
    assert torch.equal(there(input_ids=ids).logits, module.head(module.backbone(ids).last_hidden_state))
    patches, grid = torch.randn(16, 3 * 2 * 4 * 4), torch.tensor([[1, 4, 4]])
    seen = done.run.architecture.encoder.tower.network(patches, grid_thw=grid).pooler_output
    assert torch.equal(there.model.visual(patches, grid_thw=grid).pooler_output, seen)


@torch.no_grad()
def test_decoders_paint_as_the_run_does(exported: Callable[[str], Exported]) -> None:
    done, canvas = exported("metaquery:tiny"), torch.randn(1, 3, 32, 32)
    condition, present, time = torch.randn(1, 16, 128), torch.ones(1, 16, dtype=torch.bool), torch.tensor([400])
    there = done.opened("transformer")(
        canvas, encoder_hidden_states=condition, timestep=time + 1.0, encoder_attention_mask=present.float()
    )
    torch.testing.assert_close(there.sample, done.run.architecture.module.decoder(canvas, time, condition, present))
    assert done.opened("scheduler").config.flow_shift == done.run.config.decoder.shift

    painter = exported("metamorph:tiny_visualizer")
    condition, present = torch.randn(1, 16, 64), torch.ones(1, 16, dtype=torch.bool)
    there = painter.opened("unet")(canvas, time, encoder_hidden_states=condition, encoder_attention_mask=present)
    torch.testing.assert_close(there.sample, painter.run.architecture.module.decoder(canvas, time, condition, present))
    assert painter.opened("scheduler").config.prediction_type == "v_prediction"


@dataclass(frozen=True)
class Published:
    """Tiny models in the hub's layout, as somebody published them: weights in bfloat16, files that we do not write."""

    root: Path

    def __call__(self, name: str, **fields: Any) -> Pretrained:
        return Pretrained(path=str(self.root / name), **fields)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Published:
    root = tmp_path_factory.mktemp("published")
    random_language_model(LLAMA).bfloat16().save_pretrained(root / "llama")
    random_siglip(SIGLIP).bfloat16().save_pretrained(root / "siglip")
    multimodal.random_model(QWEN).bfloat16().save_pretrained(root / "qwen", max_shard_size="50KB")
    random_vae(VAE).save_pretrained(root / "stable" / "vae")
    random_stable_unet(UNET, 4).save_pretrained(root / "stable" / "unet")
    for name, control in (("llama", CONTROL), ("qwen", ("<|im_start|>", "<|im_end|>", "<|endoftext|>", *VISION))):
        alphabet = sorted(ByteLevel.alphabet())
        made = tokenizers.Tokenizer(BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
        made.pre_tokenizer = ByteLevel(add_prefix_space=False)
        made.add_special_tokens(list(control))
        made.save(str(root / name / "tokenizer.json"))
        (root / name / "LICENSE.txt").write_text("as it is")
        (root / name / "README.md").write_text("of another model")
    shutil.copyfile(root / "stable/vae/diffusion_pytorch_model.safetensors", root / "stable/vae/twin.fp16.safetensors")
    return Published(root)


def morph(published: Published) -> MetaMorph:
    return MetaMorph(backbone=published("llama"), vision=published("siglip"), grid=2)


VISION = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>")


def assert_copied(there: Path, source: Path, without: tuple[str, ...] = ()) -> None:
    """The same files with the same bytes."""
    assert {path.name for path in there.iterdir()} == {path.name for path in source.iterdir()} - set(without)
    for path in there.iterdir():
        assert path.read_bytes() == (source / path.name).read_bytes(), path.name


def test_what_was_trained_is_saved_with_its_tokenizer_and_what_was_not_is_copied(
    published: Published, tmp_path: Path
) -> None:
    config = morph(published)
    folder = by_hand.run(tmp_path / "run", config)
    model_export.export(folder, tmp_path / "out")
    done = Exported(sample.Run(folder), tmp_path / "out")
    assert_copied(done.out / "vision", published.root / "siglip")
    for name in ("tokenizer.json", "LICENSE.txt"):
        assert (done.out / "language_model" / name).read_bytes() == (published.root / "llama" / name).read_bytes()
    assert not (done.out / "language_model" / "README.md").exists()
    text, module = done.opened("language_model"), done.run.architecture.module
    assert torch.equal(text.lm_head.weight, module.backbone.lm_head.weight)
    assert len(text.lm_head.weight) == 261 and len(load_file(done.out / "interlace.safetensors")["marks_in"]) == 2


def test_frozen_parts_are_their_sources_files_byte_for_byte(published: Published, tmp_path: Path) -> None:
    canvas = Latents(vae=published("stable"), side=16, factor=2, subfolder="vae")
    fused = LMFusion(backbone=published("llama"), canvas=canvas, coder=LinearCoder(patch=4))
    model_export.export(by_hand.run(tmp_path / "lmfusion", fused), tmp_path / "out")
    assert_copied(tmp_path / "out" / "language_model", published.root / "llama", ("README.md",))
    assert_copied(tmp_path / "out" / "vae", published.root / "stable" / "vae", ("twin.fp16.safetensors",))
    weights = tmp_path / "out" / "language_model" / "model.safetensors"
    assert weights.samefile(published.root / "llama" / "model.safetensors")  # takes no room twice
    config = tmp_path / "out" / "language_model" / "config.json"
    assert not config.samefile(published.root / "llama" / "config.json")  # may be edited

    asking = MetaQuery(
        backbone=published("qwen", template="chatml"),
        decoder=StableUNet(canvas=canvas, network=published("stable")),
        connector=Connector(layers=1, head_width=16),
        queries=4,
        trained="connector",
    )
    written = model_export.export(by_hand.run(tmp_path / "metaquery", asking), tmp_path / "asking")
    assert_copied(tmp_path / "asking" / "vision_language", published.root / "qwen", ("README.md",))
    assert len(list((tmp_path / "asking" / "vision_language").glob("model-*.safetensors"))) > 1
    assert_copied(tmp_path / "asking" / "unet", published.root / "stable" / "unet")
    table = "\n".join(model_export.table(written))
    assert "unet                   diffusers.UNet2DConditionModel" in table
    assert str(published.root / "stable" / "unet") in table and "from" in table


def test_frozen_weights_that_a_run_started_from_are_the_runs_own(published: Published, tmp_path: Path) -> None:
    """The first run trains the language model, the second starts from it and trains the adapter alone."""
    config = morph(published)
    first = by_hand.run(tmp_path / "first", config)
    second = by_hand.run(tmp_path / "second", replace(config, trained="adapter"), seed=8)
    start = {"run": str(first), "weights": checkpoint.digest(first)}
    (second / "start.json").write_text(json.dumps(start))
    model_export.export(second, tmp_path / "out")
    done = Exported(sample.Run(second), tmp_path / "out")
    assert done.told["folders"]["language_model"]["from"] == "the run"
    trained = load_file(first / "checkpoints/step-000001/parameters.safetensors")
    there = done.opened("language_model").state_dict()
    assert torch.equal(there["model.norm.weight"], trained["backbone.model.norm.weight"])
    rest = load_file(done.out / "interlace.safetensors")
    assert torch.equal(rest["head.weight"], trained["head.weight"])
    assert not torch.equal(rest["adapter.0.weight"], trained["adapter.0.weight"])


@torch.no_grad()
def test_loras_matrices_are_merged_into_what_is_exported(published: Published, tmp_path: Path) -> None:
    low = Lora(part="backbone", rank=2, alpha=4.0, targets=("q_proj",))
    folder = by_hand.run(tmp_path / "run", replace(morph(published), lora=(low,)))
    before = sample.Run(folder).architecture.module.backbone
    model_export.export(folder, tmp_path / "out")
    there = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "language_model").eval()
    plain, ids = transformers.AutoModelForCausalLM.from_pretrained(published.root / "llama").float(), torch.arange(9)
    assert there.state_dict().keys() == plain.state_dict().keys()
    torch.testing.assert_close(there(ids[None]).logits, before(ids[None]).logits)
    assert not torch.allclose(there(ids[None]).logits, plain(ids[None]).logits)
    assert not any("lora" in name for name in load_file(tmp_path / "out" / "interlace.safetensors"))


def test_an_open_clip_encoder_is_its_checkpoint(tmp_path: Path) -> None:
    place = tmp_path / "open_clip"
    place.mkdir()
    config = json.loads((Path(open_clip.__file__).parent / "model_configs" / "ViT-B-16-SigLIP.json").read_bytes())
    config["vision_cfg"]["timm_model_name"] = "vit_tiny_siglip_32"
    config["vision_cfg"]["image_size"] = 32
    colors = {"mean": [0.5] * 3, "std": [0.5] * 3}
    (place / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": colors}))
    trunk = timm.create_model("vit_tiny_siglip_32", num_classes=0)
    tensors = {f"visual.trunk.{name}": value for name, value in trunk.state_dict().items()}
    save_file(tensors | {"logit_bias": torch.ones(1)}, place / "open_clip_model.safetensors")
    (place / "README.md").write_text("of another model")

    config = MetaMorph(backbone=LLAMA, vision=OpenClip(model=f"local-dir:{place}"), grid=2)
    written = model_export.export(by_hand.run(tmp_path / "run", config), tmp_path / "out")
    assert_copied(tmp_path / "out" / "vision", place, ("README.md",))
    assert {each.name: each.opens for each in written}["vision"] == "open_clip.create_model"


@register_model
def vit_tiny_siglip_32(pretrained: bool = False, **options: Any) -> VisionTransformer:
    """timm's own SigLIP, tiny."""
    return VisionTransformer(
        img_size=32,
        patch_size=8,
        embed_dim=16,
        depth=1,
        num_heads=2,
        class_token=False,
        global_pool="map",
        num_classes=options["num_classes"],
    )


def test_large_weights_are_cut_into_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exported: Callable[[str], Exported]
) -> None:
    monkeypatch.setattr(model_export, "SHARD", "400KB")
    model_export.export(exported("metaquery:tiny").run.folder, tmp_path / "out")
    done = Exported(exported("metaquery:tiny").run, tmp_path / "out")
    for folder, index in (("vision_language", "model"), ("transformer", "diffusion_pytorch_model")):
        assert (done.out / folder / f"{index}.safetensors.index.json").is_file()
        module, whole = done.opened(folder), exported("metaquery:tiny").opened(folder)
        assert all(torch.equal(value, whole.state_dict()[name]) for name, value in module.state_dict().items())


def test_a_folder_that_is_there_is_refused_and_left_alone(exported: Callable[[str], Exported], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match=r"--out .*out is there already: give another folder, or remove it first"):
        model_export.export(exported("transfusion:tiny").run.folder, tmp_path / "out")
    assert not any((tmp_path / "out").iterdir())


def test_an_export_that_fails_leaves_nothing_and_one_that_was_killed_is_in_nobodys_way(
    published: Published, tmp_path: Path
) -> None:
    shutil.copytree(published.root / "siglip", tmp_path / "siglip")
    eyes = Pretrained(path=str(tmp_path / "siglip"))
    folder = by_hand.run(tmp_path / "run", MetaMorph(backbone=LLAMA, vision=eyes, grid=2))
    (tmp_path / "siglip/model.safetensors").rename(tmp_path / "siglip/weights.safetensors")
    config = json.loads((tmp_path / "siglip/config.json").read_bytes())
    with pytest.raises(ValueError, match="siglip"):
        model_export.export(folder, tmp_path / "out")
    assert config and not (tmp_path / "out").exists() and not (tmp_path / ".out-draft").exists()
    (tmp_path / "siglip/weights.safetensors").rename(tmp_path / "siglip/model.safetensors")
    (tmp_path / ".out-draft" / "language_model").mkdir(parents=True)
    (tmp_path / ".out-draft" / "language_model" / "half").touch()
    model_export.export(folder, tmp_path / "out")
    assert not (tmp_path / "out" / "language_model" / "half").exists()


def test_the_command_prints_what_it_wrote_and_where(
    exported: Callable[[str], Exported], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["export-model", str(exported("metamorph:tiny").run.folder), "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit, match="0"):
        main(words)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["part", "opened", "by", "parameters", "bytes", "from"]
    assert lines[1].startswith("language_model         transformers.LlamaForCausalLM")
    assert lines[-1] == str(tmp_path / "out")
    with pytest.raises(SystemExit, match="2"):
        main(words)
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "is there already" in said
