"""What a step tells of its losses: by source, task and group they are those of the records alone, on any ranks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import here
import oracle
import pytest
import torch
import toys
from ranks import Ranks
from tiny_parts import LINEAR_CODER, LLAMA, LLAVA_NEXT, PIXELS, SIGLIP

from dataflow.mixture import Group, Member, Mixture
from dataflow.packing import Packing
from dataflow.roots import Roots
from dataflow.schedule import Schedule
from dataflow.sources.cambrian import Cambrian
from dataflow.sources.instruct_pix2pix import InstructPix2Pix
from dataflow.sources.metaclip import MetaClip
from dataflow.windows import Windows
from models.configs import LLaVAFusion, MetaMorph, Transfusion
from models.parts import Llama
from pipelines import learning, lengths, zero
from pipelines.batching import Kind, RecordBatches, collate, prepared
from pipelines.learning import Learned
from pipelines.plan import Opened
from pipelines.step import Place
from pipelines.training import AdamW, Execution

By = dict[str, dict[str, dict[str, float]]]

ROW = 400
MEMBERS = (
    ("understanding", Cambrian()),
    ("generation", MetaClip()),
    ("other", InstructPix2Pix()),
    ("other", MetaClip()),
)
ARCHITECTURE = MetaMorph(  # which draws nothing, so that a record loses the same wherever it stands
    backbone=Llama(width=32, layers=1, heads=2, kv_heads=1, ffn=64, max_positions=ROW), vision=SIGLIP, grid=2
)

TRANSFUSION = Transfusion(backbone=LLAMA, canvas=PIXELS, coder=LINEAR_CODER)
LLAVAFUSION = LLaVAFusion(backbone=LLAVA_NEXT, canvas=PIXELS, coder=LINEAR_CODER, system="")


@pytest.fixture(scope="module")
def batches(world: Path, tmp_path_factory: pytest.TempPathFactory) -> RecordBatches:
    """Packed rows of four members in three groups; one source stands in two of them."""
    root, roots = tmp_path_factory.mktemp("learning"), Roots.parse([str(world)])
    built = {source.name: here.build(source, roots, root / source.name) for _, source in MEMBERS[:3]}
    corpora = [built[source.name] for _, source in MEMBERS]
    groups = [
        Group(name=name, share=1, members=tuple(Member(corpus=None) for group, _ in MEMBERS if group == name))
        for name in dict.fromkeys(group for group, _ in MEMBERS)
    ]
    schedule = Windows(
        mixture=Mixture(groups=tuple(groups)),
        packing=Packing(fill=850, too_long="drop"),
        names=tuple(source.name for _, source in MEMBERS),
        digests=tuple(corpus.digest for corpus in corpora),
        rows=tuple(len(corpus) for corpus in corpora),
        batch=5,
        length=ROW,
        positions=2,
        lengths=lengths.of(ARCHITECTURE, corpora, Place(root=root)),
    )
    opened = tuple(Opened(corpus=corpus.folder, selection=None) for corpus in corpora)
    return RecordBatches(schedule=schedule, opened=opened, architecture=ARCHITECTURE, length=ROW, seed=0)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny tensors: a second thread only waits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    made = Ranks()
    yield made
    made.end()


@pytest.mark.parametrize(("micro_batch", "stage"), [(1, 2), (3, 3)])
def test_losses_by_source_task_and_group_are_those_of_their_records_alone(
    batches: RecordBatches, ranks: Ranks, micro_batch: int, stage: Any
) -> None:
    wanted = one_by_one(replace(batches), 1)  # a copy: what is opened does not travel to ranks
    assert wanted["source"].keys() == {"cambrian", "metaclip", "instruct_pix2pix"}
    assert wanted["group"].keys() == {"understanding", "generation", "other"}
    assert wanted["task"].keys() >= {"image_qa", "text_to_image", "image_editing"}
    assert wanted["task"]["image_qa"].keys() == {"text"}
    for found in ranks.ask(together, batches, 1, micro_batch, stage, seconds=120):
        assert {what: {name: losses.keys() for name, losses in names.items()} for what, names in found.items()} == {
            what: {name: losses.keys() for name, losses in names.items()} for what, names in wanted.items()
        }
        for what, names in wanted.items():
            for name, losses in names.items():
                assert found[what][name] == pytest.approx(losses, rel=1e-4), name


def one_by_one(batches: RecordBatches, position: int) -> By:
    """Every record of a position as a batch of its own."""
    architecture, layout = ARCHITECTURE.build(), ARCHITECTURE.layout()
    lost = defaultdict[tuple[str, str, str], list[tuple[float, int]]](list)
    for use in (use for pack in batches.schedule.packs(position) for use in pack):
        record = batches.reader.corpora[use.member].record(use.row)
        batch, _ = collate([[prepared(record, ARCHITECTURE, layout)]], ARCHITECTURE, rows=1, length=ROW)
        with torch.no_grad():
            sums = architecture.module(batch, architecture.encode(batch), lambda purpose, index: None).sums
        for modality, count in architecture.counts(batch).items():
            for what, name in (("source", record.source), ("task", record.task), ("group", MEMBERS[use.member][0])):
                lost[what, name, modality].append((float(sums[modality]), count))
    found: By = {"source": {}, "task": {}, "group": {}}
    for (what, name, modality), pairs in lost.items():
        if count := sum(count for _, count in pairs):
            found[what].setdefault(name, {})[modality] = sum(loss for loss, _ in pairs) / count
    return found


def together(batches: RecordBatches, position: int, micro_batch: int, stage: Any) -> By:
    """What a rank is told after a step over all ranks."""
    architecture, rank, world = ARCHITECTURE.build(), torch.distributed.get_rank(), torch.distributed.get_world_size()
    items = batches(position, rank, world, micro_batch)
    engine = zero.engine(
        architecture.module,
        AdamW(learning_rate=0.1),
        Execution(zero_stage=stage, micro_batch=micro_batch),
        care=architecture.care,
        rows_per_rank_micro=micro_batch,
        accumulation=len(items),
    )
    held = learning.everywhere(architecture, items, len(batches.sources), engine.device)
    learned = learning.learn(engine, architecture, items, held.counts, len(batches.kinds)).everywhere()
    engine.destroy()
    return learned.by(batches.kinds, list(held.counts))


@pytest.mark.parametrize("architecture", [TRANSFUSION, LLAVAFUSION])
def test_a_position_draws_on_every_rank_where_any_of_its_records_may(batches: RecordBatches, architecture: Any) -> None:
    schedule = batches.schedule
    single = Schedule(
        mixture=schedule.mixture,
        names=schedule.names,
        digests=schedule.digests,
        rows=schedule.rows,
        batch=1,  # the second rank has nothing
        positions=60,
    )
    held = replace(batches, schedule=single, architecture=architecture, length=2000)
    told = []
    for position in range(single.positions):
        (first,), (second,) = (held(position, rank, 2, 1) for rank in range(2))
        assert first.batch.draws == second.batch.draws
        assert first.batch.draws or not len(first.batch.drawn) + len(second.batch.drawn)
        ((use,),) = single.packs(position)
        task = held.reader.corpora[use.member].record(use.row).task
        assert first.batch.draws == (task not in ("text_qa", *(() if architecture is TRANSFUSION else ("image_qa",))))
        told.append(first.batch.draws)
    assert set(told) == {True, False}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_what_is_left_out_has_no_gradient_and_is_stepped_as_beside_a_phantom(stage: Any, dtype: Any) -> None:
    kinds = (("drawn", "text"), ("text", "text"), ("text", "drawn"))
    beside, left_out = (stepped(kinds, stage, dtype, leaves_out=leaves_out) for leaves_out in (False, True))
    for number, (one, other) in enumerate(zip(beside, left_out, strict=True)):
        for name, weight in one.items():
            torch.testing.assert_close(other[name], weight, rtol=0, atol=1e-5, msg=f"{name} after step {number + 1}")
    moved = {name for name, weight in left_out[1].items() if not torch.equal(weight, left_out[0][name])}
    assert moved >= {"coder.inwards.weight", "coder.outwards.weight"}  # by their moments, and they decay


def stepped(
    kinds: tuple[tuple[str, str], ...], stage: Any, dtype: Any, *, leaves_out: bool
) -> list[dict[str, torch.Tensor]]:
    """The weights after each step of one process, whose two micro-batches are of these kinds."""
    architecture = TRANSFUSION.build()
    engine = zero.engine(
        architecture.module,
        oracle.OPTIMIZER,
        Execution(zero_stage=stage, micro_batch=oracle.ROWS, dtype=dtype),
        care=architecture.care,
        rows_per_rank_micro=oracle.ROWS,
        accumulation=2,
    )
    found = []
    for step, pair in enumerate(kinds):
        draws = not leaves_out or "drawn" in pair
        items = [oracle.micro(TRANSFUSION, kind, step, place) for place, kind in enumerate(pair)]
        items = [replace(item, batch=replace(item.batch, draws=draws)) for item in items]
        counts = learning.everywhere(architecture, items, 1, engine.device).counts
        learning.learn(engine, architecture, items, counts)
        zero.step(engine, 1e-2)
        found.append(toys.weights(engine))
    engine.destroy()
    return found


def test_what_has_no_targets_in_a_step_is_not_told() -> None:
    kinds = (Kind("a", "first", "image_qa"), Kind("b", "first", "text_to_image"), Kind("a", "second", "image_qa"))
    told = torch.tensor([[[6.0, 3], [0, 0]], [[0, 0], [0, 0]], [[2.0, 1], [5.0, 2]]], dtype=torch.float64)
    learned = Learned(sums=torch.zeros(2), kinds=told)
    assert learned.by(kinds, ["text", "picture"]) == {
        "source": {"a": {"text": 2.0, "picture": 2.5}},
        "group": {"first": {"text": 2.0}, "second": {"text": 2.0, "picture": 2.5}},
        "task": {"image_qa": {"text": 2.0, "picture": 2.5}},
    }
