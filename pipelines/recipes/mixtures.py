"""Mixtures: corpora and how much of each. `interlace build mixtures:NAME --data DIR` builds all that one needs."""

from __future__ import annotations

from dataclasses import replace

from dataflow.filters import MaxText
from dataflow.mixture import Group, Member, Mixture
from dataflow.selection import Part
from pipelines.corpus import Corpus
from pipelines.recipes import corpora


def mini() -> Mixture:
    """70 / 20 / 10 of samples over the miniature corpora.

    Run:     interlace build mixtures:mini --data DIR   (DIR from `interlace mini --data-only DIR`)
    Cost:    1 s and 5 s of Ray's start on two cores (make mini, 2026-11-22)
    Expect:  2,000 understanding, 600 generation and 300 other rows in 250-row shards
    """
    return Mixture(
        groups=(
            Group(name="understanding", share=70, members=(_train(_small(corpora.cambrian())),)),
            Group(name="generation", share=20, members=(_train(_small(corpora.metaclip())),)),
            Group(name="other", share=10, members=(_train(_small(corpora.instruct_pix2pix())),)),
        )
    )


def mini_pictures() -> Mixture:
    """What the miniature visualizer sees: captioned pictures and edits, three to one.

    Run:     interlace build mixtures:mini_pictures --data DIR
    Cost:    1 s and 5 s of Ray's start on two cores (make mini, 2026-11-22)
    Expect:  the corpora of mixtures:mini without Cambrian
    """
    return Mixture(
        groups=(
            Group(name="generation", share=3, members=(_train(_small(corpora.metaclip())),)),
            Group(name="other", share=1, members=(_train(_small(corpora.instruct_pix2pix())),)),
        )
    )


def _small(corpus: Corpus) -> Corpus:
    """Shards small enough that a miniature corpus has several; texts short enough for a tiny model."""
    return replace(corpus, rows_per_shard=250, filters=(*corpus.filters, MaxText(characters=400)))


def _train(corpus: Corpus) -> Member:
    return Member(corpus=corpus, select=Part(part="train"))
