"""open_clip's SigLIP: the features of transformers' own, its layout on disk, and what is refused.

# P = 8 pictures of 32 pixels, 4 x 4 patches
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models import register_model
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from models import openclip
from models.configs import MetaMorph, Visualizer
from models.parts import Llama, OpenClip, Pixels, Siglip, StableUNet, UNet
from models.vision import VisionEncoder, random_siglip

SIGLIP = Siglip(picture=32, patch=8, width=16, layers=2, heads=2, ffn=24)
LLAMA = Llama(width=16, layers=1, heads=2, kv_heads=1, ffn=32)
MEAN, STD = [0.5, 0.25, 0.75], [0.5, 0.4, 0.3]


@register_model
def tiny_siglip_32(pretrained: bool = False, **options: Any) -> VisionTransformer:
    """timm's transformer at the sizes of SIGLIP; open_clip's JSON can name a trunk, it cannot size one."""
    return VisionTransformer(
        img_size=32,
        patch_size=8,
        embed_dim=16,
        depth=2,
        num_heads=2,
        mlp_ratio=1.5,
        class_token=False,
        global_pool="map",
        act_layer="gelu_tanh",
        num_classes=options["num_classes"],
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A whole open_clip model of random weights in the hub's layout, saved as open_clip saves."""
    config = {
        "model_cfg": {
            "embed_dim": 16,
            "init_logit_bias": -10,
            "custom_text": True,
            "vision_cfg": {
                "image_size": 32,
                "timm_model_name": "tiny_siglip_32",
                "timm_pool": "map",
                "timm_proj": "none",
            },
            "text_cfg": {"context_length": 8, "vocab_size": 32, "width": 16, "heads": 2, "layers": 1},
        },
        "preprocess_cfg": {"mean": MEAN, "std": STD, "interpolation": "bicubic", "resize_mode": "squash"},
    }
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    model = open_clip.create_model(f"local-dir:{tmp_path}")
    for parameter in model.parameters():  # norms and biases that are not the ones of every model
        nn.init.normal_(parameter, std=0.2)
    save_file(model.state_dict(), tmp_path / "open_clip_model.safetensors")
    return tmp_path


def of(folder: Path) -> OpenClip:
    return OpenClip(model=f"local-dir:{folder}")


def rewrite(folder: Path, change: Any) -> None:
    """The folder's JSON after `change` of its value."""
    file = folder / "open_clip_config.json"
    config = json.loads(file.read_text())
    change(config)
    file.write_text(json.dumps(config))


def as_open_clip(siglip: dict[str, Tensor]) -> dict[str, Tensor]:
    """transformers' names -> open_clip's: Q, K and V are one matrix, the positions have a batch of one."""
    plain = {
        "embeddings.patch_embedding": "patch_embed.proj",
        "encoder.layers": "blocks",
        "layer_norm1": "norm1",
        "layer_norm2": "norm2",
        "self_attn.out_proj": "attn.proj",
        "post_layernorm": "norm",
    }
    taken = {"pos_embed": siglip["embeddings.position_embedding.weight"][None]}
    for name, tensor in siglip.items():
        if "position_embedding" in name or "k_proj" in name or "v_proj" in name:
            continue
        if "q_proj" in name:
            three = [siglip[name.replace("q_proj", f"{kind}_proj")] for kind in "qkv"]
            name, tensor = name.replace("self_attn.q_proj", "attn.qkv"), torch.cat(three)
        for theirs, ours in plain.items():
            name = name.replace(theirs, ours)
        taken[name] = tensor
    return {f"visual.trunk.{name}": tensor.contiguous() for name, tensor in taken.items()}


def test_the_features_are_those_of_transformers_siglip(folder: Path, pictures: Tensor) -> None:
    siglip = random_siglip(SIGLIP)
    weights = load_file(folder / "open_clip_model.safetensors")
    converted = as_open_clip(siglip.state_dict())
    assert converted.keys() == {name for name in weights if name.startswith("visual.") and "attn_pool" not in name}
    save_file(weights | converted, folder / "open_clip_model.safetensors")
    rewrite(folder, lambda config: config["preprocess_cfg"].update(mean=[0.5] * 3, std=[0.5] * 3))
    found, expected = VisionEncoder(of(folder), grid=3)(pictures), VisionEncoder(SIGLIP, grid=3)(pictures)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert (expected - VisionEncoder(replace(SIGLIP, seed=1), grid=3)(pictures)).abs().max() > 0.1


def test_tokens_are_of_the_last_block_before_the_norm_and_pictures_as_the_model_was_trained_with(
    folder: Path, pictures: Tensor
) -> None:
    whole: Any = open_clip.create_model(f"local-dir:{folder}")
    trunk = whole.visual.trunk
    pixels = (pictures - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    states = trunk.forward_intermediates(pixels, indices=1, norm=False, intermediates_only=True)[0].flatten(2)
    expected = torch.nn.functional.normalize(states.transpose(1, 2), dim=-1)
    torch.testing.assert_close(VisionEncoder(of(folder), grid=4)(pictures), expected)


def test_pictures_of_any_size_come_in_the_size_the_model_reads(folder: Path, pictures: Tensor) -> None:
    encoder = VisionEncoder(of(folder), grid=2)
    assert encoder(pictures[:, :, :20, :20]).shape == (8, 4, 16)
    assert encoder(pictures[:0]).shape == (0, 4, 16)
    assert not any(parameter.requires_grad for parameter in encoder.train().parameters())
    assert not any(module.training for module in encoder.modules())


def test_a_build_leaves_the_global_generator_alone(folder: Path) -> None:
    before = torch.get_rng_state()
    first, second = (VisionEncoder(of(folder), grid=2) for _ in range(2))
    assert torch.equal(before, torch.get_rng_state())
    assert first.digest() == second.digest()
    assert not any("attn_pool" in name for name, _ in first.named_parameters())  # what is not read is not held


def test_both_architectures_see_with_it(folder: Path) -> None:
    eyes = of(folder)
    speaker = MetaMorph(backbone=LLAMA, vision=eyes, grid=2)
    network = UNet(picture=16, channels=(8, 8), attends=(False, True), layers_per_block=1, condition_width=8, heads=2)
    decoder = StableUNet(canvas=Pixels(side=16), network=network)
    painter = Visualizer(vision=eyes, decoder=decoder, grid=2, projector_width=8)
    assert speaker.seen.side == painter.drawn.side == 32
    encoders: Any = speaker.build().encoder, painter.build().encoder
    assert encoders[0].digest() == encoders[1].vision.digest()


@pytest.mark.parametrize("model", ["ViT-B-16-SigLIP", "ViT-SO400M-14-SigLIP-384", "ViT-B-16-SigLIP2"])
def test_sizes_of_published_models_are_known_offline(model: str) -> None:
    eyes = OpenClip(model=model, pretrained="webli")
    with torch.device("meta"):
        encoder = VisionEncoder(eyes, grid=8)
    assert all(parameter.is_meta for parameter in encoder.parameters())
    assert (encoder.mean, encoder.std) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert encoder.pixels == openclip.picture(eyes)
    name = open_clip.get_model_config(model)["vision_cfg"]["timm_model_name"]  # pyright: ignore[reportOptionalSubscript]
    with torch.device("meta"):
        assert encoder.channels == timm.create_model(name).num_features


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A checkpoint of ViT-B-16-SigLIP as open_clip's trainer saves it; all weights are one number, so it is small."""
    with torch.device("meta"):
        whole = open_clip.create_model("ViT-B-16-SigLIP", precision="fp32", device="meta")
    quarter = torch.tensor(0.25)
    state = {f"module.{name}": quarter.expand(tensor.shape) for name, tensor in whole.state_dict().items()}
    torch.save({"epoch": 1, "state_dict": state}, tmp_path / "epoch_1.pt")
    return tmp_path / "epoch_1.pt"


def test_a_checkpoint_of_open_clips_trainer_is_read_as_a_model_that_the_package_knows(checkpoint: Path) -> None:
    encoder = VisionEncoder(OpenClip(model="ViT-B-16-SigLIP", pretrained=str(checkpoint)), grid=8)
    assert (encoder.pixels, encoder.side, encoder.channels) == (224, 14, 768)
    assert encoder.mean == (0.5, 0.5, 0.5)  # a file says nothing of it; not CLIP's, which open_clip would fall back on
    assert all(bool((parameter == 0.25).all()) for parameter in encoder.parameters())


def test_nothing_that_was_pickled_is_run(checkpoint: Path) -> None:
    torch.save({"state_dict": {}, "hook": print}, checkpoint)
    with pytest.raises(ValueError, match="is no checkpoint of tensors alone") as caught:
        VisionEncoder(OpenClip(model="ViT-B-16-SigLIP", pretrained=str(checkpoint)), grid=8)
    assert "save it as safetensors" in str(caught.value) and "\n" not in str(caught.value)


def test_weights_of_another_model_are_refused(checkpoint: Path, folder: Path) -> None:
    with pytest.raises(ValueError, match=r"weights are not those of ViT-B-32-SigLIP2-256, first visual\.trunk\."):
        VisionEncoder(OpenClip(model="ViT-B-32-SigLIP2-256", pretrained=str(checkpoint)), grid=8)
    weights = load_file(folder / "open_clip_model.safetensors")
    del weights["visual.trunk.blocks.1.mlp.fc1.bias"]
    save_file(weights, folder / "open_clip_model.safetensors")
    with pytest.raises(
        ValueError, match=r"1 weights are not those of .*first visual\.trunk\.blocks\.1\.mlp\.fc1\.bias"
    ):
        VisionEncoder(of(folder), grid=2)
    (folder / "open_clip_model.safetensors").write_bytes(b"half")
    with pytest.raises(ValueError, match="is no checkpoint of tensors alone"):
        VisionEncoder(of(folder), grid=2)
    (folder / "open_clip_model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"holds none of open_clip_model\.safetensors"):
        VisionEncoder(of(folder), grid=2)


@pytest.mark.parametrize(
    ("eyes", "words"),
    [
        (OpenClip(model="ViT-B-32", pretrained="openai"), "ViT-B-32 sees with a transformer of open_clip's own, not"),
        (
            OpenClip(model="PE-Core-B-16", pretrained="meta"),
            "sees with vit_pe_core_base_patch16_224, not",
        ),
        (OpenClip(model="ViT-B-16-SigLP", pretrained="webli"), "no model 'ViT-B-16-SigLP': name ViT-B-16-SigLIP"),
        (OpenClip(model="local-dir:/nowhere"), "/nowhere/open_clip_config.json does not read"),
    ],
)
def test_a_model_that_is_no_siglip_is_refused_before_anything_is_loaded(eyes: OpenClip, words: str) -> None:
    for refused in (lambda: MetaMorph(backbone=LLAMA, vision=eyes).seen, lambda: VisionEncoder(eyes, grid=2)):
        with pytest.raises(ValueError, match=words):
            refused()


def test_a_tag_that_is_none_is_refused_and_a_model_has_one_or_a_folder() -> None:
    with pytest.raises(ValueError, match=r"'openai' is no file here and no tag of ViT-B-16-SigLIP \(webli\)"):
        VisionEncoder(OpenClip(model="ViT-B-16-SigLIP", pretrained="openai"), grid=2)
    for model, pretrained in (("ViT-B-16-SigLIP", None), ("local-dir:/x", "webli")):
        with pytest.raises(ValueError, match="a local-dir has none"):
            OpenClip(model=model, pretrained=pretrained)


def test_a_folder_that_does_not_say_how_pictures_are_normed_is_refused(folder: Path) -> None:
    rewrite(folder, lambda config: config.pop("preprocess_cfg"))
    with pytest.raises(ValueError, match="no mean and std of three colors"):
        VisionEncoder(of(folder), grid=2)
