"""They learn: train on a world of three shapes in eight colors, draw every one of them, and let a classifier judge.

    python benchmarks/world.py --root runs                 build, train, draw, judge: what `make world` runs
    python benchmarks/world.py --data-only DIR             only write the two corpora
    python benchmarks/world.py --root runs --only transfusion

The judge is a small convolutional network trained on the corpus' real pictures alone; its own accuracy on pictures that
neither it nor any model saw (easy-vqa's test part) stands beside its verdicts. Prints a table and writes
<root>/world.json and, per model, <root>/world-<model>.png: a row per shape, a column per color.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from dataflow.index import BuiltCorpus
from dataflow.media import decoded
from dataflow.mini.drawings import COLORS, SHAPES
from dataflow.mini.world import KINDS, SIDE, held_out, write
from dataflow.roots import Roots
from dataflow.selection import Part
from models.interface import Asked
from pipelines import journal, plan, runs, sample
from pipelines.recipes import world
from pipelines.step import Place, cluster

EACH = 8  # pictures drawn of every kind
GUIDANCE = {"transfusion": 3.0, "metamorph": 1.0}  # a young visualizer knows no pictures but those it is told of
QUESTIONS = 600  # of the validation part
NAMES = tuple(f"a {color} {shape}" for shape, color in KINDS)


def main() -> None:
    """Train what is not trained yet, then judge."""
    words = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    words.add_argument("--root", type=Path, default=Path("runs"))
    words.add_argument("--data-only", type=Path, metavar="DIR")
    words.add_argument("--only", choices=("transfusion", "metamorph"))
    words.add_argument("--guidance", type=float, help=f"of what is drawn ({GUIDANCE})")
    words.add_argument("--steps", type=int, default=50)
    given = words.parse_args()
    if given.data_only:
        print(write(given.data_only.absolute()))
        return
    root = given.root.absolute()
    data = root / "world-data"
    print(f"{data}: {write(data)}", flush=True)
    place = Place(root=root, roots=Roots.parse([str(data)]), workers=2)
    chosen = [given.only] if given.only else ["transfusion", "metamorph"]
    trained: dict[str, Path] = {}
    with cluster(place):
        opened = plan.build(world.mixture(), place)
        for name in chosen:
            for training in _trainings(name):
                kind = training.name.removeprefix("world-")
                trained[kind] = runs.train(training, place, recipe_name=f"world:{kind}")
    torch.set_num_threads(2)
    pictures, questions = (BuiltCorpus(member.corpus) for member in opened[:2])
    judge, sure = _judge(pictures)
    rows = {}
    for name in chosen:
        guidance = GUIDANCE[name] if given.guidance is None else given.guidance
        asked = Asked(answer="picture", guidance=guidance, steps=given.steps)
        run = trained[name]
        drawn = _drawn(run, trained["visualizer"] if name == "metamorph" else None, asked)
        _sheet(drawn[::EACH]).save(root / f"world-{name}.png")
        row = {"minutes of steps": _minutes(run), **_judged(judge, drawn), "classifier": sure}
        if name == "metamorph":
            row["questions"] = _answered(run, questions)
        rows[name] = row
        print(f"{name}: " + ", ".join(f"{key} {value:.3f}" for key, value in row.items()), flush=True)
    (root / "world.json").write_text(json.dumps(rows, indent=1) + "\n")


def _trainings(name: str) -> tuple:
    return (world.transfusion(),) if name == "transfusion" else (world.visualizer(), world.metamorph())


def _minutes(run: Path) -> float:
    """What the steps of a run took, each once, however often it was cut off."""
    return sum(line["seconds"] for line in journal.latest(journal.read(run))) / 60


def _pixels(image: Image.Image) -> Tensor:
    """float32[3, SIDE, SIDE] in 0..1."""
    return torch.from_numpy(np.asarray(image.convert("RGB")).copy()).permute(2, 0, 1).float() / 255


def _judge(corpus: BuiltCorpus) -> tuple[nn.Module, float]:
    """A classifier of the real pictures, and its accuracy on held-out ones."""
    records = [corpus.record(place) for place in range(len(corpus))]
    real = torch.stack([_pixels(decoded(record.media[0])) for record in records])
    kinds = torch.tensor([NAMES.index(str(record.turns[0][1][0])) for record in records])
    torch.manual_seed(0)
    judge = nn.Sequential(
        *(layer for i, o in ((3, 24), (24, 48), (48, 96)) for layer in (nn.Conv2d(i, o, 3, 2, 1), nn.ReLU())),
        nn.Flatten(),
        nn.Linear(96 * (SIDE // 8) ** 2, 96),
        nn.ReLU(),
        nn.Linear(96, len(KINDS)),
    )
    optimizer = torch.optim.AdamW(judge.parameters(), lr=2e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(12):
        for part in torch.randperm(len(real), generator=generator).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(judge(real[part]), kinds[part]).backward()
            optimizer.step()
    new = list(held_out())
    seen = torch.stack([_pixels(image) for image, _, _ in new])
    truth = torch.tensor([KINDS.index((shape, color)) for _, shape, color in new])
    with torch.no_grad():
        return judge, float((judge(seen).argmax(1) == truth).float().mean())


def _drawn(run: Path, visualizer: Path | None, asked: Asked) -> list[Tensor]:
    """EACH pictures of every kind, one kind after the other."""
    model = sample.Run(run)
    painter = sample.Run(visualizer) if visualizer else None
    drawn = []
    for number, prompt in enumerate(NAMES):
        for copy in range(EACH):
            this = Asked(answer="picture", guidance=asked.guidance, steps=asked.steps, seed=number * EACH + copy)
            turns = [("user", (prompt,))]
            (made,) = model.architecture.answer(turns, [], this, task="text_to_image", key=prompt).parts
            drawn.append(sample.painted(painter, made[None], this)[0] if painter else made)
        print(f"drawn: {prompt}", flush=True)
    return drawn


def _judged(judge: nn.Module, drawn: list[Tensor]) -> dict[str, float]:
    with torch.no_grad():
        said = judge(torch.stack(drawn)).argmax(1).tolist()
    truth = [kind for kind in range(len(KINDS)) for _ in range(EACH)]
    colors = sum(KINDS[a][1] == KINDS[b][1] for a, b in zip(said, truth, strict=True))
    both = sum(a == b for a, b in zip(said, truth, strict=True))
    return {"color": colors / len(truth), "shape and color": both / len(truth)}


def _answered(run: Path, questions: BuiltCorpus) -> float:
    """The share of validation questions answered as the corpus does."""
    model = sample.Run(run)
    places = Part(part="validation")(questions.keys).nonzero()[0][:QUESTIONS]
    right = 0
    for place in places:
        record = questions.record(int(place))
        images = [decoded(media) for media in record.media]
        asked = Asked(answer="text", max_tokens=16)
        said = model.architecture.answer(record.turns[:1], images, asked, task=record.task, key=record.key)
        right += said.parts == record.turns[1][1]
    return right / len(places)


def _sheet(pictures: Iterable[Tensor]) -> Image.Image:
    """A row per shape, a column per color, twice as large."""
    sheet = Image.new("RGB", (SIDE * len(COLORS), SIDE * len(SHAPES)))
    for place, picture in enumerate(pictures):
        array = (picture * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
        sheet.paste(Image.fromarray(array), (place % len(COLORS) * SIDE, place // len(COLORS) * SIDE))
    return sheet.resize((sheet.width * 2, sheet.height * 2), Image.Resampling.NEAREST)


if __name__ == "__main__":
    main()
