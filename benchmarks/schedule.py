"""Seconds, memory and exactness of a packed schedule at the papers' size: 16 M records, nothing on a disk but arrays.

    python benchmarks/schedule.py                   MetaMorph's ten sets, made-up lengths, both units
    python benchmarks/schedule.py --windows 300     so many windows of each instead of all

Per unit: seconds to choose the fill, to the first pack, through all windows and to resume in the middle (a new plan,
asked for one window); padding, records without room, and the largest deviation of a source from its share at a
window's end, in packs. Ranks: how far the fullest of 64 is above the mean, in tokens and in answered pictures.
"""

from __future__ import annotations

import argparse
import resource
import time
from dataclasses import replace

import numpy as np

from dataflow.mixture import Group, Member, Mixture
from dataflow.packing import Packing, dealt
from dataflow.windows import Lengths, Windows

SETS = (  # name, thousands of records (MetaMorph, figure 11), mean tokens that are made up, group
    ("cambrian", 7067, 700, "understanding"),
    ("videostar", 1055, 1300, "understanding"),
    ("sharegptvideo", 540, 1300, "understanding"),
    ("metaclip", 5000, 120, "generation"),
    ("howto100m", 1193, 500, "other"),
    ("something_something", 220, 500, "other"),
    ("visual_cot", 361, 400, "other"),
    ("vstar", 148, 500, "other"),
    ("instruct_pix2pix", 313, 230, "other"),
    ("aurora", 169, 250, "other"),
)
SHARES = {"understanding": 70, "generation": 20, "other": 10}
LENGTH, BATCH, RANKS = 4096, 256, 64


def main() -> None:
    """Measure both units and print a line of each."""
    words = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    words.add_argument("--windows", type=int, help="of each unit; one pass over the largest source by default")
    given = words.parse_args()
    lengths = _lengths()
    records, tokens = sum(len(each.tokens) for each in lengths), sum(int(each.tokens.sum()) for each in lengths)
    print(f"{records} records, {tokens / 1e9:.2f} G tokens, rows of {LENGTH}, {BATCH} a position")
    for unit in ("tokens", "samples"):
        _measure(unit, lengths, given.windows)


def _lengths() -> tuple[Lengths, ...]:
    draw = np.random.default_rng(0)
    found = []
    for _, thousands, mean, group in SETS:
        tokens = np.clip(draw.lognormal(np.log(0.8 * mean), 0.6, thousands * 1000), 70, LENGTH - 96).astype(np.int32)
        found.append(Lengths(tokens=tokens, drawn=np.full(len(tokens), 64 * (group != "understanding"), np.int32)))
    return tuple(found)


def _measure(unit: str, lengths: tuple[Lengths, ...], count: int | None) -> None:
    groups = tuple(
        Group(name=name, share=share, members=tuple(Member(corpus=None) for *_, group in SETS if group == name))
        for name, share in SHARES.items()
    )
    plan = Windows(
        mixture=Mixture(groups=groups, unit=unit),  # pyright: ignore[reportArgumentType]
        packing=Packing(),
        names=tuple(name for name, *_ in SETS),
        digests=tuple(name for name, *_ in SETS),
        rows=tuple(len(each.tokens) for each in lengths),
        batch=BATCH,
        length=LENGTH,
        positions=1 << 30,
        lengths=lengths,
    )
    began = time.perf_counter()
    fill = plan.fill
    chosen = time.perf_counter() - began
    plan = replace(plan, packing=Packing(fill=fill))
    began = time.perf_counter()
    plan.window(0)
    first = time.perf_counter() - began
    quota = BATCH * LENGTH * fill // 1000
    windows = count or sum(int(each.tokens.sum()) for each in lengths) // quota
    padding, left, worst, fullest = 0, 0, 0.0, [0.0, 0.0]
    shares = _parts(unit, lengths)
    began = time.perf_counter()
    for number in range(windows):
        window = plan.window(number)
        left += len(window.left)
        if number % 97 == 0:
            used = [sum(map(plan.tokens_of, pack)) for pack in window.packs]
            padding += BATCH * LENGTH - sum(used)
            weights = [plan.weight(pack) for pack in window.packs]
            hands = dealt(weights, RANKS)
            for place, sizes in enumerate((used, weights)):
                work = [sum(sizes[pack] for pack in hand) for hand in hands]
                fullest[place] = max(fullest[place], max(work) * RANKS / sum(work) - 1)
    through = time.perf_counter() - began
    for number in range(1, windows, max(1, windows // 50)):
        had = plan.sizes(number)
        total = sum(had)
        size = 1 if unit == "tokens" else 1 / max(1, total) * quota * number
        worst = max(worst, *(abs(one - share * total) * size / LENGTH for one, share in zip(had, shares, strict=True)))
    again = replace(plan)
    began = time.perf_counter()
    again.window(windows // 2)
    resumed = time.perf_counter() - began
    sampled = -(-windows // 97) * BATCH * LENGTH
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(
        f"{unit}: fill {fill / 10:g} % chosen in {chosen:.1f} s; first window {first * 1000:.0f} ms; "
        f"{windows} windows in {through:.0f} s; resumed in {resumed:.2f} s; "
        f"padding {padding / sampled:.2%}; {left} records without room; "
        f"largest deviation {worst:.2f} packs; fullest of {RANKS} ranks +{fullest[0]:.1%} tokens, "
        f"+{fullest[1]:.1%} pictures; {memory:.2f} GB",
        flush=True,
    )


def _parts(unit: str, lengths: tuple[Lengths, ...]) -> list[float]:
    held = [int(each.tokens.sum()) if unit == "tokens" else len(each.tokens) for each in lengths]
    whole = {name: sum(one for one, (*_, group) in zip(held, SETS, strict=True) if group == name) for name in SHARES}
    return [SHARES[group] / 100 * one / whole[group] for one, (*_, group) in zip(held, SETS, strict=True)]


if __name__ == "__main__":
    main()
