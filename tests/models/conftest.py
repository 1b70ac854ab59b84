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
from models.layout import CONTROL, Document

Collate = Callable[..., Batch]
SaveTokenizer = Callable[..., None]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def collate() -> Collate:
    """(rows of documents, pictures float32[*, 3, H, W] counted into by slots, extra padding) -> Batch."""

    def collated(rows: Sequence[Sequence[Document]], pictures: Tensor, padding: int = 0) -> Batch:
        length = max(sum(len(document) for document in row) for row in rows) + padding
        ids, which, position = (torch.zeros(len(rows), length, dtype=torch.int64) for _ in range(3))
        target = torch.zeros(len(rows), length, dtype=torch.bool)
        shown, row_of, start, answer = [], [], [], []
        for row, documents in enumerate(rows):
            first = 0
            for number, document in enumerate(documents, start=1):
                here = slice(first, first + len(document))
                ids[row, here] = torch.tensor(document.ids)
                target[row, here] = torch.tensor(document.targets)
                which[row, here] = number
                position[row, here] = torch.arange(len(document))
                for slot in document.slots:
                    shown.append(slot.picture)
                    row_of.append(row)
                    start.append(first + slot.start)
                    answer.append(slot.answer)
                first += len(document)
        return Batch(
            ids=ids,
            document=which,
            position=position,
            target=target,
            pictures=pictures[torch.tensor(shown, dtype=torch.int64)],
            row=torch.tensor(row_of, dtype=torch.int64),
            start=torch.tensor(start, dtype=torch.int64),
            answer=torch.tensor(answer, dtype=torch.bool),
        )

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
    """Eight different pictures of broad patches: float32[8, 3, 32, 32]."""
    coarse = torch.rand(8, 3, 4, 4, generator=torch.Generator().manual_seed(5))
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
