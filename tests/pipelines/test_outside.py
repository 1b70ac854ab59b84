"""A recipe, a source, a filter and a backbone that live outside the repository: built, trained and reported."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.step import HOUSE

Interlace = Callable[..., subprocess.CompletedProcess[str]]

RECIPE = '''
"""A lab's own file: everything it needs is beside it."""
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from beside import shout
from dataflow.media import picture
from dataflow.mixture import Group, Member, Mixture
from dataflow.record import Candidate, Image, Message, Text
from dataflow.sources import Read, matching
from models.layout import ByteTokenizer, ChatLayout
from models.views import Square
from pipelines.corpus import Corpus
from pipelines.training import AdamW, Execution, Training


@dataclass(frozen=True, kw_only=True)
class Captions:
    name: str = "captions"
    version: ClassVar[int] = 1

    def files(self, folder: Path) -> list[str]:
        return matching(folder, "*.jsonl")

    def candidates(self, value: dict[str, Any], key: str, read: Read) -> Iterator[Candidate]:
        yield Candidate(
            task="text_to_image",
            messages=(Message("user", (Text(shout(value["caption"])),)), Message("assistant", (Image(0),))),
            media=(picture(read(value["file"])),),
        )


@dataclass(frozen=True, kw_only=True)
class NotCalled:
    word: str
    version: ClassVar[int] = 1

    def __call__(self, record):
        said = " ".join(str(part) for _, parts in record.turns for part in parts)
        return f"says {self.word}" if self.word in said else None


@dataclass(frozen=True, kw_only=True)
class Words:
    """Learns the text alone; a backbone of its own."""

    width: int = 16
    seen: ClassVar[Square] = Square(side=8)
    drawn: ClassVar[None] = None
    version: ClassVar[int] = 1
    tasks: ClassVar[tuple[str, ...]] = ("text_to_image",)

    def layout(self):
        return ChatLayout(tokenizer=ByteTokenizer(), picture_tokens=1)

    def build(self):
        import torch
        from torch import nn
        from torch.nn import functional as F

        from models.interface import Care, Losses

        class Backbone(nn.Module):
            def __init__(self, width):
                super().__init__()
                self.read, self.say = nn.Embedding(263, width), nn.Linear(width, 263)

            def forward(self, batch, features, draw):
                scores = self.say(self.read(batch.ids[:, :-1]))
                lost = F.cross_entropy(scores.flatten(0, 1), batch.ids[:, 1:].flatten(), reduction="none")
                return Losses(sums={"text": (lost * batch.target[:, 1:].flatten()).sum()})

        class Built:
            weights = {"text": 1.0}

            def __init__(self, width):
                torch.manual_seed(0)
                self.encoder, self.module = nn.Flatten(), Backbone(width)

            def encode(self, batch):
                return self.encoder(batch.seen.pixels)

            def care(self, name):
                return Care()

            def counts(self, batch):
                return {"text": int(batch.target[:, 1:].sum())}

        return Built(self.width)


def captions() -> Corpus:
    """Captions of the lab."""
    return Corpus(source=Captions(), filters=(NotCalled(word="SECRET"),), rows_per_shard=4, max_dropped=0.5)


def words() -> Training:
    """Words of the lab's captions."""
    return Training(
        name="words",
        architecture=Words(),
        mixture=Mixture(groups=(Group(name="generation", share=1, members=(Member(corpus=captions()),)),)),
        optimizer=AdamW(learning_rate=0.05),
        batch=4,
        steps=6,
        sequence_length=200,
        execution=Execution(zero_stage=1, micro_batch=2, save_every=3),
    )
'''


@pytest.fixture
def lab(tmp_path: Path, world: Path) -> Path:
    """A folder of somebody's own: a recipe, a module beside it, ten captioned pictures of which one is secret."""
    folder = tmp_path / "lab"
    (folder / "pictures").mkdir(parents=True)
    (folder / "recipe.py").write_text(RECIPE)
    (folder / "beside.py").write_text("def shout(text):\n    return text.upper()\n")
    rows = []
    for number, picture in enumerate(sorted((world / "cambrian" / "easy_vqa").glob("*.png"))[:10]):
        (folder / "pictures" / picture.name).write_bytes(picture.read_bytes())
        rows.append({"file": picture.name, "caption": "a secret" if number == 5 else f"drawing {number}"})
    (folder / "pictures" / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_a_lab_builds_and_trains_from_its_own_file(lab: Path, interlace: Interlace) -> None:
    root = lab / "out"
    recipe = f"{lab / 'recipe.py'}:words"
    built = interlace("build", recipe, "--data", f"captions={lab / 'pictures'}", "--root", root, cwd=lab)
    assert "10 rows, 9 records kept, 1 filtered, 0 corrupt, 0 missing; 3 shards built" in built.stdout
    trained = interlace("train", "recipe.py:words", "--root", "out", cwd=lab)
    run = Path(trained.stdout.splitlines()[-1])
    losses = [json.loads(line)["losses"]["text"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len(losses) == 6
    assert losses[-1] < losses[0]
    assert json.loads((run / "recipe.json").read_text())["file"] == str(lab / "recipe.py")
    again = interlace("train", recipe, "--root", root, "--set", "execution.zero_stage=2")
    assert f"{run.name}: already trained" in again.stdout
    page = lab / "page.html"
    interlace("report", run, next((root / "corpora").glob("captions-*")), "--out", page)
    assert "NotCalled: says SECRET" in page.read_text()


def test_the_source_that_the_readme_adds_builds(lab: Path, interlace: Interlace) -> None:
    block = (
        (HOUSE / "README.md")
        .read_text()
        .partition("**A source** is")[2]
        .partition("```python\n")[2]
        .partition("```")[0]
    )
    (lab / "lab.py").write_text(block)
    said = interlace("build", "lab.py:captions", "--data", f"captions={lab / 'pictures'}", "--root", "out", cwd=lab)
    assert "10 rows, 10 records kept" in said.stdout


def test_the_curation_that_the_readme_shows_is_a_mixture(lab: Path, interlace: Interlace) -> None:
    block = (HOUSE / "README.md").read_text().partition("### Curating a mixture")[2]
    (lab / "curated.py").write_text(block.partition("```python\n")[2].partition("```")[0])
    shown = json.loads(interlace("show", "curated.py:curated", cwd=lab).stdout)
    assert [rule["is"].partition(":")[2] for rule in shown["value"]["curation"]] == [
        "Licensed",
        "Duplicates",
        "Leakage",
        "Above",
        "MetaClipBalance",
    ]
    assert shown["recipe_keys"].keys() == {"cambrian", "mmbench"}
