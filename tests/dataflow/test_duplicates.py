"""Duplicates, proved on photographs and their edits; the index of hashes, against comparing each with each."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import album
import numpy as np
import pytest
from album import blank, captioned, chat, edit, held, picture
from numpy.typing import NDArray

from dataflow import hamming
from dataflow.curation import Judgement, Verdicts
from dataflow.duplicates import Duplicates
from dataflow.fingerprints import Perceptual, normalised
from dataflow.media import picture as read
from dataflow.record import Record
from dataflow.selection import Part

CAT, CUP, MOON = (picture(name) for name in ("chelsea.png", "coffee.png", "moon.png"))


def looks(data: bytes) -> int | None:
    """The perceptual hash of a picture, as the measure has it."""
    (found,) = Perceptual().ready()([chat("a_000000000", "?", data)])["pictures"]
    return found[0]


def judged(rule: Duplicates, *corpora: list[Record]) -> Judgement:
    return rule([held(rule, records) for records in corpora])


def kept(rule: Duplicates, *corpora: list[Record]) -> list[str]:
    verdicts = judged(rule, *corpora).verdicts
    return [
        record.key
        for records, verdict in zip(corpora, verdicts, strict=True)
        for record, used in zip(records, verdict.used, strict=True)
        if used
    ]


def reasons(rule: Duplicates, *corpora: list[Record]) -> list[str]:
    return [reason for verdict in judged(rule, *corpora).verdicts for reason in verdict.reasons.to_pylist()]


def clusters(rule: Duplicates, *corpora: list[Record]) -> list[str]:
    return [name for verdict in judged(rule, *corpora).verdicts for name in verdict.clusters.to_pylist()]


# --- photographs


@pytest.mark.parametrize("name", album.NAMES)
def test_a_photograph_and_its_edits_are_twins_and_crops_are_not(name: str) -> None:
    image = album.photograph(name)
    records = [captioned("a_000000000", "?", picture(name))]
    made = [*album.edits(image), *album.others(image)]
    records += [captioned(f"a_00000{place:04d}", "?", data) for place, (_, data) in enumerate(made, 1)]
    verdict = judged(Duplicates(), records).verdicts[0]
    same = {what for (what, _), used in zip(made, verdict.used[1:], strict=True) if not used}
    assert same == {what for what, _ in album.edits(image)}
    assert verdict.used[0]


def test_other_photographs_are_far_apart() -> None:
    hashes = [looks(picture(name)) for name in album.NAMES]
    assert min((one ^ other).bit_count() for one, other in combinations(map(int, filter(None, hashes)), 2)) >= 16


def test_two_lenses_of_one_camera_are_two_photographs_unless_the_distance_is_wider() -> None:
    stereo = [
        captioned(f"a_00000000{n}", "?", picture(f"motorcycle_{side}.png")) for n, side in enumerate(("left", "right"))
    ]
    assert len(kept(Duplicates(), stereo)) == 2
    assert len(kept(Duplicates(distance=6), stereo)) == 1


def test_a_blank_has_no_looks_and_is_compared_by_its_bytes() -> None:
    assert looks(blank(255)) is looks(blank(0)) is None
    records = [
        chat("a_000000000", "?", blank(255)),
        chat("a_000000001", "?", blank(0)),
        chat("a_000000002", "?", blank(255)),
    ]
    assert kept(Duplicates(), records) == ["a_000000000", "a_000000001"]
    assert clusters(Duplicates(), records[:2]) == ["a_000000000", "a_000000001"]


def test_a_picture_that_does_not_decode_has_no_looks() -> None:
    whole = album.file(album.photograph("chelsea.png"), "PNG")
    broken = read(whole)
    damaged = chat("a_000000000", "?", whole)
    object.__setattr__(damaged.media[0], "data", whole[:200] + whole[-12:])
    assert Perceptual().ready()([damaged])["pictures"] == [[None]]
    assert broken.data == whole


# --- what makes a duplicate


def test_questions_about_one_picture_are_no_duplicates_but_one_cluster() -> None:
    records = [chat("a_000000000", "what is it?", CAT), chat("a_000000001", "is it a cat?", CAT)]
    assert kept(Duplicates(), records) == ["a_000000000", "a_000000001"]
    assert clusters(Duplicates(), records) == ["a_000000000"] * 2


def test_edits_of_one_source_stay_and_share_a_cluster() -> None:
    records = [
        edit("a_000000000", "a cup", CAT, CUP),
        edit("a_000000001", "the moon", CAT, MOON),
        chat("a_000000002", "?", MOON),
    ]
    for same in ("record", "pictures"):
        assert len(kept(Duplicates(same=same), records)) == 3
    assert clusters(Duplicates(), records) == ["a_000000000"] * 3


def test_captions_of_one_photograph_are_duplicates_where_pictures_alone_count() -> None:
    small = album.file(album.photograph("chelsea.png").resize((150, 100)), "JPEG")
    records = [captioned("a_000000000", "a cat", CAT), captioned("a_000000001", "a tabby", small)]
    assert len(kept(Duplicates(), records)) == 2
    assert kept(Duplicates(same="pictures"), records) == ["a_000000000"]


def test_a_duplicate_says_the_same_whatever_its_case_and_spaces() -> None:
    assert normalised(" What\nis  ﬁne?") == "what is fine?"
    records = [chat("a_000000000", "What is it?", CAT), chat("a_000000001", "what  is it?\n", CAT)]
    assert reasons(Duplicates(), records) == ["", "the same pictures and words as a_000000000"]
    answered = [chat("a_000000000", "?", CAT), chat("a_000000001", "?", CAT, answer="no")]
    assert len(kept(Duplicates(), answered)) == 2


def test_pictures_are_compared_in_their_places_and_all_of_them() -> None:
    records = [
        chat("a_000000000", "?", CAT, CUP),
        chat("a_000000001", "?", CUP, CAT),
        chat("a_000000002", "?", CAT),
        chat("a_000000003", "?", CAT, CUP),
        chat("a_000000004", "?", CAT, CUP, MOON),
    ]
    assert kept(Duplicates(), records) == [f"a_00000000{n}" for n in (0, 1, 2, 4)]


def test_records_of_other_tasks_are_no_duplicates() -> None:
    records = [chat("a_000000000", "?", CAT), chat("a_000000001", "?", CAT, task="video_qa")]
    assert len(kept(Duplicates(), records)) == 2


def test_only_the_tasks_that_are_named_lose_records_and_clusters_are_over_all() -> None:
    records = [captioned("a_000000000", "?", CAT), captioned("a_000000001", "?", CAT)]
    chats = [chat("b_000000000", "?", CAT), chat("b_000000001", "?", CAT)]
    rule = Duplicates(tasks=("text_to_image",))
    assert kept(rule, records, chats) == ["a_000000000", "b_000000000", "b_000000001"]
    assert clusters(rule, records, chats) == ["a_000000000"] * 4


def test_text_is_compared_where_there_are_no_pictures() -> None:
    records = [chat(f"a_00000000{n}", text, task="text_qa") for n, text in enumerate(("one", "two", "one"))]
    for same in ("record", "pictures"):
        assert kept(Duplicates(same=same), records) == ["a_000000000", "a_000000001"]
    assert clusters(Duplicates(), records) == ["a_000000000", "a_000000001", "a_000000000"]
    assert reasons(Duplicates(), records)[2] == "the same words as a_000000000"


def test_without_a_distance_bytes_decide_and_nothing_is_decoded() -> None:
    again = album.file(album.photograph("chelsea.png"), "JPEG", quality=80)
    records = [chat("a_000000000", "?", CAT), chat("a_000000001", "?", again), chat("a_000000002", "?", CAT)]
    rule = Duplicates(distance=None)
    assert kept(rule, records) == ["a_000000000", "a_000000001"]
    assert clusters(rule, records) == ["a_000000000", "a_000000001", "a_000000000"]
    assert [measure.name for measure in rule.measures] == ["sha256"]


# --- who stays


def test_the_first_corpus_of_the_mixture_keeps_its_record_and_the_ledger_names_it() -> None:
    small = album.file(album.photograph("motorcycle_left.png").resize((160, 110)), "JPEG", quality=30)
    ours = [captioned("ours_000000000", "?", picture("motorcycle_left.png"))]
    theirs = [captioned("theirs_000000000", "?", CAT), captioned("theirs_000000001", "?", small)]
    bits = (int(looks(picture("motorcycle_left.png")) or 0) ^ int(looks(small) or 0)).bit_count()
    assert reasons(Duplicates(), ours, theirs) == ["", "", f"picture 0 is a twin of ours_000000000, {bits} bits apart"]
    assert kept(Duplicates(), theirs, ours) == ["theirs_000000000", "theirs_000000001"]


def test_a_record_that_is_out_already_is_no_winner() -> None:
    rule = Duplicates()
    records = [chat("a_000000000", "?", CAT), chat("a_000000001", "?", CAT), chat("a_000000002", "?", CAT)]
    verdict = rule([held(rule, records, used=[False, True, True])]).verdicts[0]
    assert verdict.used.tolist() == [False, True, False]
    assert verdict.reasons.to_pylist() == ["", "", "the same pictures and words as a_000000001"]


def test_clusters_so_far_are_joined_and_never_parted() -> None:
    rule = Duplicates()
    records = [
        chat("a_000000000", "?", CAT),
        chat("a_000000001", "!", CAT),
        chat("a_000000002", "?", CUP),
        chat("a_000000003", "?", MOON),
    ]
    before = ["a_000000000", "a_000000001", "a_000000001", "a_000000003"]
    verdict = rule([held(rule, records, clusters=before)]).verdicts[0]
    assert verdict.clusters.to_pylist() == ["a_000000000"] * 3 + ["a_000000003"]


def test_nothing_is_dropped_for_what_is_only_like_what_is_like_it() -> None:
    """A chain of hashes, each 2 bits from the next: one cluster, but only what is near a record that stays is out."""
    hashes = np.array([0b0, 0b11, 0b1111, 0b111111, 0b11111111], np.uint64) + np.uint64(1 << 40)
    keys, verdict = _shown(Duplicates(), [[int(bits)] for bits in hashes])
    assert verdict.used.tolist() == [True, False, True, False, True]
    assert verdict.clusters.to_pylist() == [keys[0]] * 5
    assert verdict.reasons.to_pylist()[3] == f"picture 0 is a twin of {keys[2]}, 2 bits apart"


def test_one_picture_like_one_record_and_one_like_another_is_a_duplicate_of_neither() -> None:
    a, b, other = 0b11 << 20, 0b11 << 40, 1 << 63 | 0xFFFF
    _, verdict = _shown(Duplicates(), [[a, other], [other, b], [a | 1, b | 1], [a | 2, other]])
    assert verdict.used.tolist() == [True, True, True, False]


def test_who_stays_is_as_if_each_record_were_compared_with_all_that_stay_before_it() -> None:
    for seed in range(6):
        chance = random.Random(seed)
        hashes = _clumps(40, seed).tolist()
        pictures = [[chance.choice(hashes) for _ in range(chance.randint(1, 2))] for _ in range(400)]
        stay: list[list[int]] = []
        expected = []
        for shown in pictures:
            apart = ([(one ^ other).bit_count() for one, other in zip(shown, kept, strict=False)] for kept in stay)
            alike = any(len(kept) == len(shown) and max(bits) <= 4 for kept, bits in zip(stay, apart, strict=True))
            expected.append(not alike)
            stay += [] if alike else [shown]
        assert _shown(Duplicates(distance=4), pictures)[1].used.tolist() == expected
        assert 50 < sum(expected) < 350


# --- splits


def test_train_and_validation_never_share_a_picture_in_random_tangles() -> None:
    for seed in range(8):
        chance = random.Random(seed)
        hashes = np.unique(np.array([chance.getrandbits(64) for _ in range(150)], np.uint64))
        shows = [[chance.randrange(len(hashes)) for _ in range(chance.randint(1, 3))] for _ in range(200)]
        flips = [np.uint64(1 << chance.randrange(64)) * np.uint64(chance.random() < 0.5) for _ in range(200)]
        pictures = [[int(hashes[place] ^ flip) for place in places] for places, flip in zip(shows, flips, strict=True)]
        _, verdict = _shown(Duplicates(), pictures)
        train, validation = (
            Part(part=part, validation=400)(verdict.clusters.to_pylist()) for part in ("train", "validation")
        )
        assert train.sum() > 0 < validation.sum()
        left = [bits for row in np.flatnonzero(train) for bits in pictures[row]]
        right = [bits for row in np.flatnonzero(validation) for bits in pictures[row]]
        assert min((one ^ other).bit_count() for one in left for other in right) > 2


# --- the index of hashes


@pytest.mark.parametrize("distance", [0, 1, 2, 4, 8])
def test_pairs_within_a_distance_are_those_that_comparing_each_with_each_finds(distance: int) -> None:
    hashes = _clumps(600, seed=distance)
    expected = {
        (one, other)
        for one, other in combinations(range(len(hashes)), 2)
        if (int(hashes[one]) ^ int(hashes[other])).bit_count() <= distance
    }
    found = hamming.pairs(hashes, distance)
    assert set(map(tuple, found.near.tolist())) == expected
    assert not len(found.crowded)
    assert bool(expected) == (distance > 0)


@pytest.mark.parametrize("distance", [0, 1, 4, 8])
def test_matches_are_those_that_comparing_each_with_each_finds(distance: int) -> None:
    hashes = np.random.default_rng(distance).permutation(_clumps(700, seed=1))
    asked, present = hashes[:400], hashes[350:]
    apart = np.bitwise_count(asked[:, None] ^ present[None, :])
    one, other, bits = hamming.matches(asked, present, distance)
    assert np.array_equal(np.stack([one, other]), np.stack(np.nonzero(apart <= distance)))
    assert np.array_equal(bits, apart[one, other])
    assert len(bits) >= 50


def test_nothing_is_near_nothing() -> None:
    none = np.empty(0, np.uint64)
    assert len(hamming.pairs(none, 4).near) == len(hamming.matches(none, none, 4)[0]) == 0
    assert len(hamming.matches(none, np.array([5], np.uint64), 4)[0]) == 0


def test_a_crowd_is_one_cluster_and_is_not_compared() -> None:
    """2,000 hashes that differ in their last 24 bits alone agree in two thirds of the bands."""
    crowd = np.unique(np.random.default_rng(0).integers(0, 1 << 24, 2000, np.uint64))
    keys, verdict = _shown(Duplicates(), [[int(bits)] for bits in crowd])
    assert verdict.clusters.to_pylist() == [keys[0]] * len(keys)
    assert len(hamming.pairs(crowd, 2).near) < len(crowd)


def test_a_hundred_thousand_pictures_that_look_alike_are_no_pairs() -> None:
    _, verdict = _shown(Duplicates(), [[0xABCDEF]] * 100_000)
    assert verdict.used.sum() == 1
    assert set(verdict.clusters.to_pylist()) == {"a_000000000"}


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"same": "words"}, "same='words': what makes a duplicate is the record or its pictures"),
        ({"distance": 9}, "distance=9: bits of 64; use 0 to 8, or None"),
        ({"distance": -1}, "distance=-1"),
    ],
)
def test_values_that_mean_nothing_are_refused(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Duplicates(**fields)


def _clumps(count: int, seed: int) -> NDArray[np.uint64]:
    """Different hashes, many of them some bits from others."""
    chance = random.Random(seed)
    centers = [chance.getrandbits(64) for _ in range(count // 6)]
    made = []
    for _ in range(count):
        bits = chance.choice(centers)
        for _ in range(chance.randint(0, 6)):
            bits ^= 1 << chance.randrange(64)
        made.append(bits)
    return np.unique(np.array(made, np.uint64))


def _shown(rule: Duplicates, pictures: Sequence[Sequence[int]]) -> tuple[list[str], Verdicts]:
    """Records whose pictures look so, and whose words are the same; and the verdicts on them."""
    keys = [f"a_{place:09d}" for place in range(len(pictures))]
    held = album.looking(keys, pictures)
    return keys, rule([held]).verdicts[0]
