"""The mixtures of the house: what their pages promise, on the paper's counts and on miniature corpora."""

from __future__ import annotations

import inspect
import re
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, get_args

import here
import pytest

from dataflow import selection
from dataflow.index import BuiltCorpus
from dataflow.mixture import Count, Group, Member, Mixture, Passes
from dataflow.roots import Roots
from dataflow.schedule import Schedule
from dataflow.selection import Part
from models.configs import MetaMorph
from models.layout import ByteTokenizer, ChatLayout
from pipelines import plan, recipe
from pipelines.corpus import Corpus
from pipelines.recipes import mixtures
from pipelines.step import Place
from pipelines.training import AdamW, Training

Interlace = Callable[..., subprocess.CompletedProcess[str]]

PAPER = {  # thousands of records: MetaMorph, figure 11
    "cambrian": 7067,
    "videostar": 1055,
    "sharegptvideo": 540,
    "metaclip": 5000,
    "howto100m": 1193,
    "something_something": 220,
    "visual_cot": 361,
    "vstar": 148,
    "instruct_pix2pix": 313,
    "aurora": 169,
}


def names(mixture: Mixture) -> list[str]:
    return [member.corpus.name for member in mixture.members]


def scheduled(mixture: Mixture, rows: dict[str, int], *, batch: int = 1000, positions: int = 0) -> Schedule:
    """Of corpora with so many selected records."""
    held = names(mixture)
    return Schedule(
        mixture=mixture,
        names=tuple(held),
        digests=tuple(held),
        rows=tuple(rows[name] for name in held),
        batch=batch,
        positions=positions,
    )


def groups(mixture: Mixture, values: Sequence[int]) -> dict[str, int]:
    left = iter(values)
    return {group.name: sum(next(left) for _ in group.members) for group in mixture.groups}


def test_the_page_of_metamorph_says_what_it_uses() -> None:
    mixture = mixtures.metamorph()
    endless = scheduled(mixture, {name: 1000 * count for name, count in PAPER.items()}, batch=1)
    assert endless.lasts is not None
    counts = replace(endless, positions=endless.lasts).counts()
    used = {**groups(mixture, counts), **dict(zip(names(mixture), counts, strict=True))}
    page = (inspect.getdoc(mixtures.metamorph) or "").partition("Expect:")[2].replace(",", "")
    said = {name: int(number) for name, number in re.findall(r"([a-z_0-9]+) +(\d+)(?=[ \n]|$)", page) if name in used}
    assert said == {name: round(count / 1000) for name, count in used.items() if name != "metaclip"}  # is its group
    assert "12374 in all" in page
    assert round(endless.lasts / 1000) == 12374
    assert used["metaclip"] / (0.9 * 5_000_000) == pytest.approx(0.55, abs=0.006)
    assert used["other"] / 2_404_000 == pytest.approx(0.51, abs=0.006)


def test_metamorph_is_70_20_10_and_one_pass_over_understanding() -> None:
    mixture = mixtures.metamorph()
    rows = {name: 10 * count for name, count in PAPER.items()}
    endless = scheduled(mixture, rows, batch=100)
    assert endless.lasts is not None
    through = replace(endless, positions=endless.lasts // 100)
    for positions in (1, 10, through.positions // 2, through.positions):
        counts = through.counts(positions)
        assert [
            abs(count - share * positions) <= 1
            for count, share in zip(groups(mixture, counts).values(), (70, 20, 10), strict=True)
        ] == [True] * 3
    for name, count in zip(names(mixture)[:3], through.counts(), strict=False):
        assert rows[name] - 100 <= count <= rows[name]
    passes = [count / rows[name] for name, count in zip(names(mixture), through.counts(), strict=True)][4:]
    assert max(passes) - min(passes) < 0.01  # inside a group in proportion to rows


def test_metamorph_paper_has_the_ten_sets_and_their_counts() -> None:
    mixture = mixtures.metamorph_paper()
    assert {name: member.amount for name, member in zip(names(mixture), mixture.members, strict=True)} == {
        name: Count(records=1000 * count) for name, count in PAPER.items()
    }
    most = {name: 980 * count for name, count in PAPER.items()} | {"metaclip": 5000 * 980 * 9 // 10 * 105 // 100}
    endless = scheduled(mixture, most)
    assert endless.lasts == 16_066_000
    counts = replace(endless, positions=16_066).counts()
    assert dict(zip(names(mixture), counts, strict=True)) == {name: 1000 * count for name, count in PAPER.items()}
    assert [round(100 * count / 16_066_000) for count in groups(mixture, counts).values()] == [54, 31, 15]


def test_metamorph_paper_names_a_set_that_lost_too_many_rows() -> None:
    lost = {name: 1000 * count for name, count in PAPER.items()} | {"videostar": 500_000}
    mixture = mixtures.metamorph_paper()
    with pytest.raises(
        ValueError,
        match=r"^videostar runs dry at position 8\d\d\d of 16066: 500000 records read 1\.1 times \(max_passes\) are "
        r"550000; raise max_passes, take less of it, or give it more records$",
    ):
        scheduled(mixture, lost, positions=16_066).counts()
    scheduled(replace(mixture, max_passes=3), lost, positions=16_066).counts()


def test_metamorph_public_takes_captions_in_metaclip_s_place() -> None:
    private, public = mixtures.metamorph(), mixtures.metamorph_public()
    assert [name.replace("metaclip", "captions") for name in names(private)] == names(public)
    assert [member.select for member in private.members] == [member.select for member in public.members]
    assert mixtures.metamorph_tokens() == replace(private, unit="tokens")


def test_unlock_gives_so_many_pictures_beside_all_questions_or_alone() -> None:
    rows = {"cambrian": 40_000, "metaclip": 8000}
    joint, alone = recipe.load("mixtures:unlock(generation=500)"), mixtures.unlock(500, with_understanding=False)
    through = scheduled(joint, rows, batch=10, positions=4050)
    assert through.lasts == 40_500
    assert dict(zip(names(joint), through.counts(), strict=True)) == {"cambrian": 40_000, "metaclip": 500}
    assert names(alone) == ["metaclip"]
    assert scheduled(alone, rows).lasts == 500
    with pytest.raises(ValueError, match=r"metaclip runs dry at position 880 of 900: 8000 records read 1\.1 times"):
        scheduled(mixtures.unlock(9000, with_understanding=False), rows, batch=10, positions=900).counts()


def test_data_types_adds_all_of_one_type() -> None:
    found = {}
    for kind in get_args(mixtures.DataType):
        mixture = recipe.load(f"mixtures:data_types(only={kind!r})")
        *others, pictures = mixture.members
        assert pictures.amount == Count(records=200_000)
        assert {member.amount for member in others} == {Passes(times=1)}
        found[kind] = [member.corpus.name for member in others]
    assert sorted(name for kind in found.values() for name in kind) == sorted(set(PAPER) - {"metaclip"})
    assert names(mixtures.data_types()) == ["metaclip"]
    with pytest.raises(ValueError, match=r"is not one of 'image_qa', 'video_qa', .* \| None, written as a literal"):
        recipe.load('mixtures:data_types(only="vidio_qa")')


def test_asymmetry_takes_so_many_of_both() -> None:
    through = scheduled(
        recipe.load("mixtures:asymmetry(vqa=4_000, generation=1_000)"),
        {"cambrian": 9000, "metaclip": 1000},
        batch=1,
        positions=5000,
    )
    assert through.lasts == 5000
    assert through.counts() == [4000, 1000]


# --- who sees what


def every_mixture() -> Iterator[tuple[str, Mixture]]:
    """All mixtures of the house, also those that brackets make."""
    more = ["mixtures:unlock(with_understanding=False)", 'mixtures:visualizer(pictures="captions")']
    more += [f"mixtures:data_types(only={kind!r})" for kind in get_args(mixtures.DataType)]
    for name in [*(name for name, _ in recipe.listing() if name.startswith("mixtures:")), *more]:
        yield name, recipe.load(name)


def used(member: Member, keys: list[str]) -> set[str]:
    return {key for key, chosen in zip(keys, member.select(keys), strict=True) if chosen}


def test_no_mixture_trains_on_the_validation_part() -> None:
    for name, mixture in every_mixture():
        for member in mixture.members:
            keys = [f"{member.corpus.name}_{number:09d}" for number in range(5000)]
            held_out = {key for key, chosen in zip(keys, Part(part="validation")(keys), strict=True) if chosen}
            assert not used(member, keys) & held_out, name


def test_the_visualizer_shares_no_picture_with_what_is_generated(world: Path, tmp_path: Path) -> None:
    """On the keys that a built corpus has, and on many more of that form."""
    for source, asked in (
        ("metaclip", "mixtures:visualizer"),
        ("captions", 'mixtures:visualizer(pictures="captions")'),
    ):
        (painted,) = recipe.load(asked).members
        keys = [f"{source}_{number:09d}" for number in range(20_000)]
        kept = built(painted.corpus, world, tmp_path).keys
        generated = [
            member
            for name, mixture in every_mixture()
            if re.match("mixtures:(metamorph|unlock|data_types|asymmetry)", name)
            for member in mixture.members
            if member.corpus.name == source
        ]
        assert generated
        for member in generated:
            assert member.corpus == painted.corpus  # so that keys mean the same rows
            assert not used(member, keys) & used(painted, keys)
            assert not used(member, kept) & used(painted, kept)
            assert len(used(member, keys) | used(painted, keys)) == Part(part="train")(keys).sum()
        assert len(used(painted, keys)) == pytest.approx(0.098 * 20_000, rel=0.05)
        assert used(painted, kept)


def test_mini_holds_every_source_and_mini_metamorph_what_it_learns_from(world: Path, tmp_path: Path) -> None:
    whole, learned = mixtures.mini(), mixtures.mini_metamorph()
    assert sorted(names(whole)) == sorted(folder.name for folder in world.iterdir() if folder.is_dir())
    documents = {"text", "mmc4"}
    assert sorted([*names(learned), *documents]) == sorted(names(whole))
    for member in whole.members:
        tasks = set(built(member.corpus, world, tmp_path).tasks)
        assert tasks
        assert (tasks <= set(MetaMorph.tasks)) == (member.corpus.name not in documents)


# --- on built corpora


@dataclass(frozen=True, kw_only=True)
class Reads:
    """What plans ask of an architecture: tasks and a layout."""

    version: ClassVar[int] = 1
    tasks: ClassVar[tuple[str, ...]] = ("text_document", "caption_pair", "text_to_image", "image_qa", "text_qa")

    def layout(self) -> ChatLayout:
        return ChatLayout(tokenizer=ByteTokenizer(), picture_tokens=16)


def training(mixture: Mixture, *, steps: int | None, batch: int = 4) -> Training:
    return Training(
        name="read",
        architecture=Reads(),
        mixture=mixture,
        optimizer=AdamW(learning_rate=1.0),
        batch=batch,
        steps=steps,
        sequence_length=4096,
    )


def built(corpus: Corpus, world: Path, folder: Path) -> BuiltCorpus:
    """The corpus of the miniature world, built in this process."""
    final = folder / corpus.recipe_key()[:12]
    if final.is_dir():
        return BuiltCorpus(final)
    return here.build(
        corpus.source, Roots(base=world), final, filters=corpus.filters, rows=250, recipe_key=corpus.recipe_key()
    )


def opened(mixture: Mixture, world: Path, folder: Path) -> list[BuiltCorpus]:
    """The members of a mixture, through their selections."""
    result = []
    for place, member in enumerate(mixture.members):
        whole = built(member.corpus, world, folder)
        if member.select is None:
            result.append(whole)
            continue
        chosen = folder / f"{whole.name}-{place}"
        selection.write(chosen, whole, member.select, step={})
        result.append(BuiltCorpus(whole.folder, selection.read(chosen)))
    return result


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(root=tmp_path_factory.mktemp("pairs"))


@pytest.fixture(scope="module")
def pairs(world: Path, place: Place) -> list[BuiltCorpus]:
    return opened(mixtures.transfusion(), world, place.root)


def test_transfusion_has_as_many_tokens_of_text_as_of_pictures_at_every_prefix(
    pairs: list[BuiltCorpus], place: Place
) -> None:
    asked = training(mixtures.transfusion(), steps=60)
    schedule = plan.schedule(asked, pairs, place)
    assert isinstance(schedule, Schedule)
    layout, had, longest = asked.architecture.layout(), [0, 0], 0
    for number in range(schedule.positions):
        for use in schedule.position(number):
            record = pairs[use.member].record(use.row)
            length = len(layout.lay_out(record.turns, task=record.task, key=record.key))
            assert length == schedule.lengths[use.member][use.row]
            longest = max(longest, int(max(each.max() for each in schedule.lengths)))
            had[use.member] += length
            assert abs(had[0] - had[1]) <= longest
    assert min(had) > 10 * longest
    rows = plan.table(asked, schedule)
    assert [row["tokens"] for row in rows] == had
    assert [row["share"] for row in rows] == [count / sum(had) for count in had]
    assert [row["planned"] for row in rows] == schedule.counts()
    assert [row["source"] for row in rows] == ["text", "captions"]


def test_a_mixture_in_samples_lays_out_nothing_and_its_table_has_no_tokens(
    pairs: list[BuiltCorpus], place: Place
) -> None:
    asked = training(replace(mixtures.transfusion(), unit="samples"), steps=10)
    schedule = plan.schedule(asked, pairs, place)
    assert schedule.lengths == ()
    assert [sorted(row) for row in plan.table(asked, schedule)] == [
        ["group", "passes", "planned", "records", "share", "source"]
    ] * 2
    assert [row["share"] for row in plan.table(asked, schedule)] == [0.5, 0.5]


def test_without_steps_a_training_is_as_long_as_its_mixture(pairs: list[BuiltCorpus], place: Place) -> None:
    text, captions = mixtures.transfusion().members
    once = Group(name="text", members=(replace(text, amount=Passes(times=2)),))
    some = Group(name="generation", members=(replace(captions, amount=Count(records=5)),))
    asked = training(Mixture(groups=(once, some)), steps=None)
    schedule = plan.schedule(asked, pairs, place)
    assert schedule.positions == (2 * len(pairs[0]) + 5) // 4
    assert next(row["passes"] for row in plan.table(asked, schedule)) == pytest.approx(2, abs=4 / len(pairs[0]))
    assert plan.schedule(replace(asked, steps=schedule.positions), pairs, place) == schedule
    with pytest.raises(ValueError, match=r"^(text|captions) runs dry at position \d+ of 999: its amount is"):
        plan.schedule(replace(asked, steps=999), pairs, place)
    with pytest.raises(ValueError, match=rf"lasts for {2 * len(pairs[0]) + 5} records, a batch has 500: give it more"):
        plan.schedule(replace(asked, batch=500), pairs, place)


def test_without_steps_and_amounts_a_training_has_no_end(pairs: list[BuiltCorpus], place: Place) -> None:
    with pytest.raises(
        ValueError, match="training read has no steps and its mixture no end: give steps, or give the members of a"
    ):
        plan.schedule(training(replace(mixtures.transfusion(), unit="samples"), steps=None), pairs, place)


def test_the_command_takes_a_recipe_with_brackets(interlace: Interlace) -> None:
    shown = interlace("show", "mixtures:unlock(generation=5000, with_understanding=False)").stdout
    assert '"records": 5000' in shown
    assert '"cambrian' not in shown
    refused = interlace("show", "mixtures:unlock(generations=5000)", expect=2).stderr
    assert refused.count("\n") == 1
    assert "there is no parameter generations; did you mean generation?" in refused
