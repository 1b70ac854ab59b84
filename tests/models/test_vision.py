"""The frozen encoder: what it computes, and that nothing moves it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import SiglipConfig, SiglipModel, SiglipTextConfig, SiglipVisionConfig, SiglipVisionModel

from models import pretrained
from models.configs import MetaMorph
from models.parts import Llama, Pretrained, Siglip
from models.vision import VisionEncoder

TINY = Siglip(picture=32, patch=8, width=16, layers=2, heads=2, ffn=32)


@pytest.fixture
def encoder() -> VisionEncoder:
    return VisionEncoder(TINY, grid=3)


def direct(encoder: VisionEncoder, pixels: Tensor, grid: int) -> Tensor:
    """The definition, token by token: float32[P, 3, H, W] in -1..1 -> float32[P, grid * grid, C]."""
    states = encoder.network(pixels, output_hidden_states=True).hidden_states[-1]
    side = int(states.shape[1] ** 0.5)
    channels_first = states.transpose(1, 2).unflatten(2, (side, side))
    coarse = F.interpolate(channels_first, size=(grid, grid), mode="bilinear", align_corners=False)
    tokens = torch.stack([coarse[:, :, y, x] for y in range(grid) for x in range(grid)], dim=1)
    return tokens / tokens.square().sum(dim=-1, keepdim=True).sqrt()


def test_features_are_the_last_layers_output_on_the_grid_then_normalised(
    encoder: VisionEncoder, pictures: Tensor
) -> None:
    features = encoder(pictures)
    assert features.shape == (8, 9, 16) and features.dtype == torch.float32
    torch.testing.assert_close(features, direct(encoder, pictures * 2 - 1, 3))
    torch.testing.assert_close(features.norm(dim=-1), torch.ones(8, 9))


def test_features_are_taken_before_the_last_norm(encoder: VisionEncoder, pictures: Tensor) -> None:
    network = encoder.network
    assert isinstance(network, SiglipVisionModel)
    normed = network(pictures * 2 - 1)
    again = network.post_layernorm(network(pictures * 2 - 1, output_hidden_states=True).hidden_states[-1])
    torch.testing.assert_close(normed.last_hidden_state, again)  # the library still means what the encoder assumes
    assert (F.normalize(normed.last_hidden_state, dim=-1) - VisionEncoder(TINY, grid=4)(pictures)).abs().max() > 0.01


def test_pictures_of_another_size_are_resampled_with_antialias(encoder: VisionEncoder, pictures: Tensor) -> None:
    large = F.interpolate(pictures, size=(80, 80), mode="nearest")
    small = F.interpolate(large, size=(32, 32), mode="bilinear", antialias=True, align_corners=False)
    torch.testing.assert_close(encoder(large), direct(encoder, small * 2 - 1, 3))


def test_pixels_that_no_whole_patch_covers_are_left_out(pictures: Tensor) -> None:
    odd = VisionEncoder(Siglip(picture=35, patch=8, width=16, layers=1, heads=2, ffn=32), grid=2)  # 384 / 14 in small
    assert odd(pictures).shape == (8, 4, 16)


def test_no_pictures_give_no_features(encoder: VisionEncoder) -> None:
    assert encoder(torch.zeros(0, 3, 32, 32)).shape == (0, 9, 16)


def test_the_encoder_stays_in_eval_mode_and_without_gradients(encoder: VisionEncoder, pictures: Tensor) -> None:
    around = nn.ModuleList([encoder]).train()
    assert around.training and not any(module.training for module in encoder.modules())
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    assert not encoder(pictures.requires_grad_()).requires_grad


def test_weights_are_a_function_of_the_seed_and_the_global_generator_is_left_alone() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    digest = VisionEncoder(TINY, grid=3).digest()
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    assert VisionEncoder(TINY, grid=3).digest() == digest
    other = Siglip(picture=32, patch=8, width=16, layers=2, heads=2, ffn=32, seed=1)
    assert VisionEncoder(other, grid=3).digest() != digest


def test_the_digest_sees_a_single_weight(encoder: VisionEncoder) -> None:
    before = encoder.digest()
    encoder.network.get_parameter("encoder.layers.0.mlp.fc1.bias").data[0] += 1e-3
    assert encoder.digest() != before


@pytest.fixture
def siglip_folder(tmp_path: Path) -> Path:
    """A whole tiny SigLIP, text side and pooling head included, as the hub publishes it."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    text = SiglipTextConfig(vocab_size=16, max_position_embeddings=8, num_hidden_layers=1, **sizes)
    vision = SiglipVisionConfig(image_size=32, patch_size=8, num_hidden_layers=2, **sizes)
    SiglipModel(SiglipConfig(text_config=text.to_dict(), vision_config=vision.to_dict())).save_pretrained(tmp_path)
    return tmp_path


def test_the_vision_side_of_a_published_siglip_loads(siglip_folder: Path, pictures: Tensor) -> None:
    encoder = VisionEncoder(Pretrained(path=str(siglip_folder)), grid=3)
    whole = SiglipModel.from_pretrained(siglip_folder).eval().vision_model
    states = whole(pictures * 2 - 1, output_hidden_states=True).hidden_states[-1]
    channels_first = states.transpose(1, 2).unflatten(2, (4, 4))
    coarse = F.interpolate(channels_first, size=(3, 3), mode="bilinear", align_corners=False)
    torch.testing.assert_close(encoder(pictures), F.normalize(coarse.flatten(2).transpose(1, 2), dim=-1))


def test_a_config_reads_its_picture_size_from_published_weights(siglip_folder: Path) -> None:
    backbone = Llama(width=16, layers=1, heads=2, kv_heads=1, ffn=32)
    assert MetaMorph(backbone=backbone, vision=Pretrained(path=str(siglip_folder))).seen.side == 32


def test_missing_weights_are_an_error_not_random_numbers(siglip_folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(siglip_folder / "model.safetensors")
    del weights["vision_model.encoder.layers.0.mlp.fc1.bias"]
    save_file(weights, siglip_folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks 1 weights of SiglipVisionModel, first .*fc1.bias"):
        VisionEncoder(Pretrained(path=str(siglip_folder)), grid=3)


def test_a_model_of_another_kind_is_refused(siglip_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"type 'siglip', not a decoder of the Llama family"):
        pretrained.language_model(Pretrained(path=str(siglip_folder)))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"holds no readable config\.json"):
        pretrained.vision_model(Pretrained(path=str(tmp_path / "empty")))
    with pytest.raises(ValueError, match="holds no weights for UNet2DConditionModel"):
        pretrained.stable_unet(Pretrained(path=str(tmp_path / "empty")))


@pytest.mark.parametrize("path", ["/nowhere/at/all", "./nowhere", "name", "a/b/c"])
def test_a_path_that_is_neither_folder_nor_hub_id_is_refused_without_asking_the_hub(path: str) -> None:
    with pytest.raises(ValueError, match="is no folder here and no hub id"):
        pretrained.folder(Pretrained(path=path))


def test_a_hub_id_that_cannot_be_had_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"'nobody/nothing' at revision 'v1' is no folder here") as caught:
        pretrained.folder(Pretrained(path="nobody/nothing", revision="v1"))
    assert "\n" not in str(caught.value)
