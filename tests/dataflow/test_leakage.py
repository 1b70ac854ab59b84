"""The leakage gate: pictures and words of evaluation sets in a mixture, told by set, dropped, or a reason to stop."""

from __future__ import annotations

from typing import Any

import album
import pytest
from album import blank, captioned, chat, held, picture

from dataflow.curation import Judgement
from dataflow.fingerprints import WordGrams
from dataflow.leakage import Leakage
from dataflow.record import Record

CAT, CUP, MOON, ROCKET = (picture(name) for name in ("chelsea.png", "coffee.png", "moon.png", "rocket.jpg"))
QUESTION = "Which of the two cups on the wooden table beside the red book is closer to the lamp?"


def gate(**fields: Any) -> Leakage:
    """A gate whose sets the test hands it; what stands in `against` is the recipe's."""
    return Leakage(against=("a corpus of the recipe",), **fields)


def judged(rule: Leakage, records: list[Record], *sets: list[Record], **how: Any) -> Judgement:
    return rule([held(rule, records, **how)], [held(rule, one) for one in sets])


def remarks(rule: Leakage, records: list[Record], *sets: list[Record], **how: Any) -> list[str]:
    (verdict,) = judged(rule, records, *sets, **how).verdicts
    return verdict.reasons.to_pylist()


def test_a_picture_of_a_set_is_found_as_it_is_and_edited() -> None:
    small = album.file(album.photograph("coffee.png").resize((160, 107)), "JPEG", quality=50)
    mixture = [captioned(f"a_00000000{n}", str(n), data) for n, data in enumerate((CAT, small, ROCKET))]
    bench = [chat("bench_000000000", "what is it?", CUP), chat("bench_000000001", "and this?", CAT, MOON)]
    found = remarks(gate(then="report"), mixture, bench)
    assert found == [
        "bench: picture 0 is that of bench_000000001",
        "bench: picture 0 is a twin of bench_000000000, 0 bits apart",
        "",
    ]


def test_any_picture_of_a_record_leaks_and_the_place_is_told() -> None:
    mixture = [chat("a_000000000", "?", ROCKET, MOON)]
    assert remarks(gate(then="report"), mixture, [chat("bench_000000000", "!", MOON)]) == [
        "bench: picture 1 is that of bench_000000000"
    ]


def test_a_blank_is_nobodys_picture() -> None:
    assert remarks(gate(), [chat("a_000000000", "?", blank())], [chat("bench_000000000", "!", blank())]) == [""]


def test_without_a_distance_bytes_alone_are_compared() -> None:
    again = album.file(album.photograph("chelsea.png"), "JPEG")
    mixture = [chat("a_000000000", "?", CAT), chat("a_000000001", "?", again)]
    assert remarks(gate(then="report", distance=None), mixture, [chat("bench_000000000", "!", CAT)]) == [
        "bench: picture 0 is that of bench_000000000",
        "",
    ]


def test_a_run_of_thirteen_words_is_found_inside_other_text() -> None:
    words = QUESTION.split()
    mixture = [
        chat("a_000000000", f"Look well. {QUESTION.upper()} Answer in a word!", CAT),
        chat("a_000000001", " ".join(words[:12]) + " other words follow it here", CAT),
        chat("a_000000002", "well, " + ", ".join(words[2:15]), CAT),
    ]
    found = remarks(gate(then="report"), mixture, [chat("bench_000000000", QUESTION, CUP)])
    assert found == ["bench: a run of words as in bench_000000000", "", "bench: a run of words as in bench_000000000"]


def test_what_the_assistant_says_is_compared_too() -> None:
    answer = chat("a_000000000", "?", CAT, answer=QUESTION)
    assert remarks(gate(then="report"), [answer], [chat("bench_000000000", QUESTION, CUP)])[0]


def test_a_short_text_is_compared_whole_and_a_very_short_one_not_at_all() -> None:
    eight, seven = "what is the man in the boat holding", "what is the man in it holding"
    bench = [chat("bench_000000000", eight, CUP), chat("bench_000000001", seven, CUP)]
    mixture = [
        chat("a_000000000", "What is the man in the boat holding?", CAT),
        chat("a_000000001", seven, CAT),
        chat("a_000000002", f"{eight} there", CAT),
    ]
    assert [bool(each) for each in remarks(gate(then="report"), mixture, bench)] == [True, False, False]


def test_runs_do_not_reach_over_two_texts() -> None:
    halves = chat("a_000000000", " ".join(QUESTION.split()[:9]), answer=" ".join(QUESTION.split()[9:]), task="text_qa")
    whole = chat("bench_000000000", QUESTION, CUP)
    assert not set(WordGrams().of(halves)) & set(WordGrams().of(whole))


def test_a_phrase_of_many_places_is_no_leak_and_a_cluster_is_one_place() -> None:
    mixture = [chat(f"a_{place:09d}", QUESTION, task="text_qa") for place in range(4)]
    bench = [chat("bench_000000000", QUESTION, CUP)]
    assert all(remarks(gate(then="report", common=4), mixture, bench))
    assert not any(remarks(gate(common=3), mixture, bench))
    clusters = ["a_000000000"] * 3 + ["a_000000003"]
    assert all(remarks(gate(then="report", common=3), mixture, bench, clusters=clusters))


def test_records_that_are_out_already_do_not_leak() -> None:
    mixture = [chat("a_000000000", "?", CAT), chat("a_000000001", "!", CUP)]
    assert remarks(gate(), mixture, [chat("bench_000000000", "!", CAT)], used=[False, True]) == ["", ""]


def test_the_table_counts_by_set_and_a_clean_set_has_its_row() -> None:
    mixture = [chat("a_000000000", QUESTION, CAT), chat("a_000000001", "?", CAT), chat("a_000000002", "?", MOON)]
    bench = [
        chat("bench_000000000", "!", CAT),
        chat("bench_000000001", QUESTION, CUP),
        chat("bench_000000002", "!", ROCKET),
    ]
    clean = [chat("clean_000000000", "?", ROCKET)]
    table = judged(gate(then="report"), mixture, bench, clean).table
    columns = ("set", "records", "found", "in records of the mixture", "by picture", "by words")
    assert table == (
        dict(zip(columns, ("bench", 3, 2, 2, 2, 1), strict=True)),
        dict(zip(columns, ("clean", 1, 0, 0, 0, 0), strict=True)),
    )


def test_a_record_may_leak_two_sets_in_two_ways() -> None:
    one, two = [chat("one_000000000", QUESTION, CAT)], [chat("two_000000000", "?", CAT)]
    assert remarks(gate(then="report"), [chat("a_000000000", QUESTION, CAT)], one, two) == [
        "one: picture 0 is that of one_000000000; one: a run of words as in one_000000000; "
        "two: picture 0 is that of two_000000000"
    ]


def test_what_is_reported_stays_in_use_and_what_is_dropped_does_not() -> None:
    mixture = [chat("a_000000000", "?", CAT), chat("a_000000001", "?", CUP)]
    bench = [chat("bench_000000000", "!", CAT)]
    (reported,), (dropped,) = (judged(gate(then=then), mixture, bench).verdicts for then in ("report", "drop"))
    assert reported.used.tolist() == [True, True]
    assert dropped.used.tolist() == [False, True]
    assert reported.reasons.to_pylist() == dropped.reasons.to_pylist()
    assert reported.clusters.to_pylist() == ["a_000000000", "a_000000001"]


def test_told_to_stop_it_says_how_much_of_which_set_and_where() -> None:
    mixture = [chat(f"a_{place:09d}", "?", CAT) for place in range(5)]
    bench, clean = [chat("bench_000000000", "!", CAT)], [chat("clean_000000000", "!", CUP)]
    with pytest.raises(ValueError, match="5 records of the mixture") as raised:
        judged(gate(), mixture, bench, clean)
    told = str(raised.value)
    assert "\n" not in told
    assert "bench (1 of its 1 records; 5 by picture, 0 by words)" in told
    assert "clean" not in told
    assert "first a_000000000 (bench: picture 0 is that of bench_000000000), a_000000001" in told
    assert "a_000000003" not in told
    assert "then='drop'" in told
    assert judged(gate(), mixture, clean).verdicts[0].used.all()


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"against": ()}, "name the corpora that the mixture is compared with"),
        ({"then": "warn"}, "then='warn': leaks are for report, drop or stop"),
        ({"words": 7}, "words=7: texts share shorter runs by chance; use 8 or more"),
        ({"distance": 20}, "distance=20"),
        ({"common": 0}, "common=0"),
    ],
)
def test_values_that_mean_nothing_are_refused(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Leakage(**{"against": ("a corpus",), **fields})
