"""What the tests of this folder share: documents -> Batch by hand, keyed draws, and tiny models in the hub's layout.

# B rows, N tokens of the longest row, P pictures, H = W their pixels
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import tokenizers
import torch
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor

from models.interface import Batch, Draw
from models.layout import CONTROL, Document, Slot
from models.sequence import batched
from models.views import Cut

Collate = Callable[..., Batch]
SaveTokenizer = Callable[..., None]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def collate() -> Collate:
    """(rows of documents, pictures float32[*, 3, H, W] counted into by slots, extra padding) -> Batch."""

    def collated(rows: Sequence[Sequence[Document]], pictures: Tensor, padding: int = 0) -> Batch:
        tiles = (pictures * 255).round().to(torch.uint8).permute(0, 2, 3, 1)[:, None].numpy()
        side = pictures.shape[-1]
        longest = max(sum(len(document) for document in row) for row in rows)

        def picture(row: int, number: int, slot: Slot) -> tuple[Cut, tuple[int, int]]:
            return Cut(tiles[slot.picture], (1, 1)), (side, side)

        return batched(rows, picture, sides={"seen": side, "drawn": side}, length=longest + padding)[0]

    return collated


@pytest.fixture
def draw() -> Draw:
    """A generator per purpose and picture."""

    def drawn(purpose: str, picture: int) -> torch.Generator:
        seed = int.from_bytes(hashlib.sha256(f"{purpose}/{picture}".encode()).digest()[:7], "big")
        return torch.Generator().manual_seed(seed)

    return drawn


@pytest.fixture
def pictures() -> Tensor:
    """Eight different pictures of broad patches, as bytes hold them: float32[8, 3, 32, 32]."""
    coarse = (torch.rand(8, 3, 4, 4, generator=torch.Generator().manual_seed(5)) * 255).round() / 255
    return coarse.repeat_interleave(8, dim=2).repeat_interleave(8, dim=3)


@pytest.fixture
def save_tokenizer() -> SaveTokenizer:
    """Writes a byte-level tokenizer.json without merges: 256 ids for bytes, then the control tokens."""

    def saved(folder: Path, control: Sequence[str] = CONTROL) -> None:
        alphabet = sorted(ByteLevel.alphabet())
        tokenizer = tokenizers.Tokenizer(BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
        tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
        tokenizer.decoder = ByteLevelDecoder()
        tokenizer.add_special_tokens(list(control))
        folder.mkdir(parents=True, exist_ok=True)
        tokenizer.save(str(folder / "tokenizer.json"))

    return saved
