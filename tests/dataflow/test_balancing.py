"""MetaCLIP's balancing: what an entry matches, and who is kept, against the algorithm written out text by text."""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pytest
from upstream import Build, jpeg, tar

from dataflow.balancing import EntryFile, EntryMatches, Listed, Matcher, MetaClipBalance, WordNet
from dataflow.curation import Held, Verdicts
from dataflow.draw import draw
from dataflow.sources.metaclip import MetaClip

# --- entries


@pytest.mark.parametrize(
    ("text", "entries"),
    [
        ("a red bus", ["red", "bus", "red bus"]),
        ("a red, bus", ["red", "bus"]),
        ("bus.", ["bus"]),
        ("Red busses", []),  # case is kept, words are whole
        ("red\tbus\nred", ["red", "bus", "red bus"]),
        ("a 'red' (bus)", []),  # quotes and brackets belong to their word
        ("her ph.d. thesis", ["ph.d."]),
        ("her ph.d.", ["ph.d."]),
        ("", []),
        ("red red red", ["red"]),
        ("der rote Bär", ["Bär"]),
    ],
)
def test_an_entry_is_in_a_text_as_whole_words(text: str, entries: list[str]) -> None:
    known = ["red", "bus", "red bus", "ph.d.", "Bär"]
    assert [known[number] for number in Matcher(known)([text])] == entries


def test_an_entry_does_not_reach_over_two_texts_and_counts_once() -> None:
    assert Matcher(["red", "red bus", "bus"])(["a red", "bus", "red"]) == [0, 2]


def test_the_entries_of_a_record_are_measured(tmp_path: Path, build: Build) -> None:
    home = tmp_path / "data/metaclip/0"
    home.mkdir(parents=True)
    captions = ["a red bus", "the sea", "red; red"]
    members = []
    for number, caption in enumerate(captions):
        described = json.dumps({"uuid": str(number), "texts": [["alt", caption]]}).encode()
        members += [(f"{number}.jpeg", jpeg()), (f"{number}.json", described)]
    (home / "0.tar").write_bytes(tar(*members))
    corpus = build(MetaClip())
    ready = EntryMatches(entries=Listed(entries=("bus", "red"))).ready()
    assert ready([corpus.record(place) for place in range(3)]) == {"entries": [[0, 1], [], [1]]}


def named(path: Path) -> EntryFile:
    return EntryFile(path=str(path), sha256=hashlib.sha256(path.read_bytes()).hexdigest())


def test_a_file_gives_an_entry_a_line_or_a_json_list_each_once(tmp_path: Path) -> None:
    lines, listed = tmp_path / "entries.txt", tmp_path / "metadata.json"
    lines.write_text("red\nred bus\nBär\nred\n")
    listed.write_text('["red", "red bus", "Bär"]')
    assert named(lines).read() == named(listed).read() == ("red", "red bus", "Bär")


def test_a_file_that_is_not_the_one_that_the_recipe_names_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "entries.txt"
    file.write_text("red\n")
    entries = named(file)
    file.write_text("blue\n")
    with pytest.raises(ValueError, match=named(file).sha256):
        entries.read()
    with pytest.raises(ValueError, match="no entries there"):
        replace(entries, path=str(tmp_path / "none.txt")).read()
    for name, text in (("none.txt", ""), ("blank.txt", "red\n\nbus\n"), ("a.json", '{"red": 1}'), ("b.json", "[")):
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match=r"entries are words|JSON list"):
            named(tmp_path / name).read()


# wordnet-base 1:3.0-37: the licence stands above the synsets, glosses are cut here
SYNSETS = {
    "noun": "  29 Princeton University and LICENSEE agrees to preserve same.  \n"
    "00001930 03 n 01 physical_entity 0 007 @ 00001740 n 0000 | an entity that has physical existence  \n"
    "00002137 03 n 02 abstraction 0 abstract_entity 0 010 @ 00001740 n 0000 | a general concept  \n"
    "06704115 10 n 02 Ph.D. 0 PhD 0 001 @ 06703953 n 0000 | a doctorate  \n",
    "verb": "00001740 29 v 04 breathe 0 take_a_breath 0 respire 0 suspire 3 021 * 00005041 v 0000 | draw air  \n",
    "adj": "00014358 00 s 01 galore(ip) 0 001 & 00013887 a 0000 | in great numbers  \n",
    "adv": "00001740 02 r 01 a_cappella 0 000 | without accompaniment  \n00001837 02 r 01 breathe 0 000 | again  \n",
}


def test_wordnet_gives_the_first_word_of_each_synset(tmp_path: Path) -> None:
    for part, text in SYNSETS.items():
        (tmp_path / f"data.{part}").write_text(text)
    digest = hashlib.sha256("".join(SYNSETS.values()).encode()).hexdigest()
    assert WordNet(folder=str(tmp_path), sha256=digest).read() == (
        "physical entity",
        "abstraction",
        "ph.d.",
        "breathe",
        "galore",
        "a cappella",
    )


# --- balance


def held(name: str, texts: list[str], entries: tuple[str, ...], **more: Any) -> Held:
    """A corpus of captions as the curation sees it."""
    keys = [f"{name}_{number:09d}" for number in range(len(texts))]
    matcher = Matcher(entries)
    rule = EntryMatches(entries=Listed(entries=entries))
    given = {
        "index": pa.table({"key": keys, "task": ["text_to_image"] * len(texts)}),
        "used": np.ones(len(texts), bool),
        "clusters": pa.array(keys),
        "measures": {rule.name: pa.table({"entries": [matcher([text]) for text in texts]}, rule.columns)},
        "corpus": cast(Any, None),  # which balancing does not open
    }
    return Held(name=name, **(given | more))


def with_spaces(text: str) -> str:
    for mark in ",.;:?!`":
        text = text.replace(mark, f" {mark} ")
    return f" {text} "


def directly(corpora: dict[str, list[str]], entries: tuple[str, ...], threshold: int) -> dict[str, list[bool]]:
    """Algorithm 1 of arXiv:2309.16671 as it reads: every text against every entry, then a chance for each text."""
    between = {entry: with_spaces(entry) for entry in entries}
    matched = {
        name: [[entry for entry in entries if between[entry] in text] for text in map(with_spaces, texts)]
        for name, texts in corpora.items()
    }
    counts = Counter(entry for lists in matched.values() for found in lists for entry in found)
    kept: dict[str, list[bool]] = {}
    for name, lists in matched.items():
        kept[name] = []
        for number, found in enumerate(lists):
            missed = 1.0
            for entry in found:
                missed *= 1 - min(1.0, threshold / counts[entry])
            kept[name].append(draw(f"{name}_{number:09d}", "balance", 2**53) / 2**53 < 1 - missed)
    return kept


def zipf(texts: int, seed: int) -> tuple[list[str], tuple[str, ...]]:
    """Captions of words as unequally frequent as those of the web, and entries: common, rare, of two words, absent."""
    chance = random.Random(seed)
    words = [f"w{number}" for number in range(2000)]
    said = chance.choices(words, [1 / (rank + 1) for rank in range(2000)], k=6 * texts)
    captions = [
        " ".join(said[6 * place : 6 * place + 6]) + chance.choice(["", ".", ", " + said[place]])
        for place in range(texts)
    ]
    entries = tuple(words[1:40] + words[100:2000:100] + ["w1 w2", "w2 w1", "w1999 w0", "nobody says this"])
    return captions, entries


def test_100_000_texts_are_balanced_as_by_the_algorithm_written_out() -> None:
    captions, entries = zipf(100_000, seed=3)
    corpora = {"metaclip": captions[:70_000], "captions": captions[70_000:]}
    verdicts = MetaClipBalance(entries=Listed(entries=entries), threshold=300)(
        [held(name, texts, entries) for name, texts in corpora.items()]
    )
    expected = directly(corpora, entries, 300)
    assert [each.used.tolist() for each in verdicts] == list(expected.values())
    assert 2_000 < sum(map(sum, expected.values())) < 50_000


TWO = ("sea", "cliff")


def balanced(texts: list[str], threshold: int, entries: tuple[str, ...] = TWO, **more: Any) -> Verdicts:
    (verdicts,) = MetaClipBalance(entries=Listed(entries=entries), threshold=threshold)(
        [held("metaclip", texts, entries, **more)]
    )
    return verdicts


def test_a_common_entry_gives_about_the_threshold_and_a_rare_one_all() -> None:
    used = balanced(["the sea"] * 20_000 + ["a cliff"] * 500 + ["a cliff by the sea"] * 500, 1000).used
    assert 900 < used[:20_000].sum() < 1_050  # 1,000 of 20,500 that say sea
    assert used[20_000:].all()  # 1,000 say cliff


def test_what_is_taken_out_says_which_entry_is_common() -> None:
    verdicts = balanced(["the sea"] * 50 + ["a meadow"], 1)
    reasons = verdicts.reasons.to_pylist()
    assert set(reasons[:50]) == {"'sea', its rarest entry, is in 50 texts", ""}
    assert [reason == "" for reason in reasons] == verdicts.used.tolist()
    assert reasons[50] == "holds no entry of the list"
    both = balanced(["the sea by a cliff"] * 50 + ["the sea"], 1).reasons.to_pylist()
    assert set(both[:50]) == {"'cliff', its rarest entry, is in 50 texts", ""}


def test_a_higher_threshold_keeps_all_that_a_lower_one_keeps() -> None:
    captions, entries = zipf(3_000, seed=4)
    few, many = (balanced(captions, threshold, entries).used for threshold in (5, 20))
    assert few.sum() < many.sum()
    assert (many | few).sum() == many.sum()


def test_only_records_of_its_tasks_that_are_in_use_are_counted_and_balanced() -> None:
    texts = ["the sea"] * 300
    tasks = ["text_to_image", "image_qa", "caption_pair"] * 100
    keys = [f"metaclip_{number:09d}" for number in range(300)]
    used = np.arange(300) < 150
    verdicts = balanced(texts, 100, index=pa.table({"key": keys, "task": tasks}), used=used)
    assert verdicts.used.tolist() == used.tolist()  # 100 are counted, so each is kept
    assert set(verdicts.reasons.to_pylist()) == {""}
    fewer = balanced(texts, 10, index=pa.table({"key": keys, "task": tasks}), used=used)
    questions = np.array(tasks) == "image_qa"
    assert fewer.used[questions].tolist() == used[questions].tolist()
    assert 2 <= fewer.used[~questions].sum() <= 25
    assert not fewer.used[150:].any() and set(fewer.reasons.to_pylist()[150:]) == {""}


def test_a_rule_that_cannot_be_meant_is_refused() -> None:
    with pytest.raises(ValueError, match="threshold=0"):
        MetaClipBalance(entries=Listed(entries=TWO), threshold=0)
    with pytest.raises(ValueError, match="'captioning' is none"):
        MetaClipBalance(entries=Listed(entries=TWO), tasks=("captioning",))
