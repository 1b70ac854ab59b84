"""Between a canvas and the tokens of a transformer: a matrix, or the two halves of a U-Net.

# R pictures (1 at least), [F, h, w] their canvas, a x a cells of a token, T = (h / a) * (w / a) tokens, D width

    down(canvas, timestep) -> tokens, passed      up(hidden, timestep, passed) -> what is predicted of the canvas
"""

from __future__ import annotations

import torch
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.unets.unet_2d import UNet2DModel
from einops import rearrange
from torch import Tensor, nn

from models.parts import Coder, LinearCoder, UNetCoder


class Linear(nn.Module):
    """Patches through one matrix; the timestep is added to a patch before it.

    Source: Transfusion, section 3 and footnote 6, arXiv:2408.11039.
    """

    def __init__(self, coder: LinearCoder, *, channels: int, cells: int, width: int) -> None:
        super().__init__()
        self.patch, self.side = coder.patch, cells // coder.patch
        values = channels * coder.patch**2
        self.frequencies = Timesteps(256, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time = TimestepEmbedding(256, values)
        self.inwards = nn.Linear(values, width)
        self.outwards = nn.Linear(width, values)

    def down(self, canvas: Tensor, timestep: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """float[R, F, h, w], int64[R] -> float[R, T, D], and nothing passed by."""
        patches = rearrange(canvas, "r f (h a) (w b) -> r (h w) (f a b)", a=self.patch, b=self.patch)
        time = self.time(self.frequencies(timestep).to(canvas.dtype))
        return self.inwards(patches + time[:, None]), ()

    def up(self, hidden: Tensor, timestep: Tensor, passed: tuple[Tensor, ...]) -> Tensor:
        """float[R, T, D] -> float[R, F, h, w]."""
        patches = self.outwards(hidden)
        return rearrange(patches, "r (h w) (f a b) -> r f (h a) (w b)", h=self.side, a=self.patch, b=self.patch)


class UNet(nn.Module):
    """The halves of diffusers' UNet2DModel without its middle, where the transformer stands instead.

    Its residual blocks add the timestep; nothing is scaled or shifted by it. The up half reads what the down half
    passed by.
    Source: Transfusion, section 3 and footnote 7; LMFusion, equations 6 and 14, arXiv:2412.15188.
    """

    def __init__(self, coder: UNetCoder, *, channels: int, cells: int, width: int) -> None:
        super().__init__()
        self.side = cells // coder.patch
        self.unet = UNet2DModel(
            sample_size=cells,
            in_channels=channels,
            out_channels=channels,
            block_out_channels=coder.channels,
            layers_per_block=coder.layers_per_block,
            down_block_types=tuple("AttnDownBlock2D" if attends else "DownBlock2D" for attends in coder.attends),
            up_block_types=tuple("AttnUpBlock2D" if attends else "UpBlock2D" for attends in reversed(coder.attends)),
            attention_head_dim=coder.head_width,
            norm_num_groups=coder.groups,
            resnet_time_scale_shift="default",
            mid_block_type=None,
        )
        self.inwards = nn.Linear(coder.channels[-1], width)
        self.outwards = nn.Linear(width, coder.channels[-1])

    def down(self, canvas: Tensor, timestep: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """float[R, F, h, w], int64[R] -> float[R, T, D], and the states of every scale."""
        time = self.time(timestep, canvas.dtype)
        state = self.unet.conv_in(canvas)
        passed = (state,)
        for block in self.unet.down_blocks:
            state, states = block(hidden_states=state, temb=time)
            passed += states
        return self.inwards(rearrange(state, "r c h w -> r (h w) c")), passed

    def up(self, hidden: Tensor, timestep: Tensor, passed: tuple[Tensor, ...]) -> Tensor:
        """float[R, T, D], int64[R], the states of `down` -> float[R, F, h, w]."""
        time = self.time(timestep, hidden.dtype)
        state = rearrange(self.outwards(hidden), "r (h w) c -> r c h w", h=self.side)
        for block in self.unet.up_blocks:
            count = len(block.resnets)  # pyright: ignore[reportArgumentType]
            state = block(hidden_states=state, res_hidden_states_tuple=passed[-count:], temb=time)
            passed = passed[:-count]
        return self.unet.conv_out(self.unet.conv_act(self.unet.conv_norm_out(state)))

    def time(self, timestep: Tensor, dtype: torch.dtype) -> Tensor:
        """What the blocks are told of the timestep: float[R, E]."""
        return self.unet.time_embedding(self.unet.time_proj(timestep).to(dtype))


def built(coder: Coder, *, channels: int, cells: int, width: int) -> Linear | UNet:
    """The coder's modules.

    Args:  channels, cells: of the canvas, cells a side. width: of the transformer.
    """
    if isinstance(coder, LinearCoder):
        return Linear(coder, channels=channels, cells=cells, width=width)
    return UNet(coder, channels=channels, cells=cells, width=width)
