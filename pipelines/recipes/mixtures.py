"""Mixtures: corpora and how much of each. `interlace build mixtures:NAME --data DIR` builds all that one needs.

One record in fifty of every corpus is its validation part and in none of these. In MetaMorph's mixtures nine tenths of
the captioned pictures are for the language model to generate and one tenth is the visualizer's: it must not have been
trained on what it will be shown.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from dataflow.filters import MaxText
from dataflow.mixture import Count, Group, Member, Mixture, Passes
from dataflow.selection import All, Part, Portion
from dataflow.sources.aurora import Aurora
from pipelines.corpus import Corpus
from pipelines.recipes import corpora

_TRAIN = Part(part="train")
_PAINTED = 900  # of 1,000 places by key; captioned pictures from here on are the visualizer's alone
_NEARLY_ONE_PASS = 1.1  # counts of papers are of every row; ours lack the validation part and what the ledger names

DataType = Literal["image_qa", "video_qa", "pure_video", "visual_thinking", "image_to_image"]


def metamorph() -> Mixture:
    """MetaMorph's data at 70 / 20 / 10 of samples, one pass over understanding.

    Run:     interlace build mixtures:metamorph --data DIR
    Cost:    not measured yet
    Expect:  by the paper's counts, in thousands of records: 12,374 in all
             understanding 8,662, 1 pass: cambrian 7,067, videostar 1,055, sharegptvideo 540
             generation    2,475, 0.55 of a pass over the nine tenths of metaclip that are generated
             other         1,237, 0.51 of a pass: howto100m 614, something_something 113, visual_cot 186, vstar 76,
             instruct_pix2pix 161, aurora 87
    """
    once = Passes(times=1)
    return Mixture(
        groups=(
            Group(name="understanding", share=70, members=tuple(_train(each, once) for each in _understanding())),
            Group(name="generation", share=20, members=(_generated(corpora.metaclip()),)),
            Group(name="other", share=10, members=tuple(_train(each) for each in _other())),
        )
    )


def metamorph_tokens() -> Mixture:
    """The same at 70 / 20 / 10 of tokens, as the training's architecture lays records out.

    Run:     interlace build mixtures:metamorph_tokens --data DIR
    Cost:    not measured yet; every record is read and laid out at each start, before the first step
    Expect:  more samples of generation than 20 %: a request for a picture is a short record
    """
    return replace(metamorph(), unit="tokens")


def metamorph_paper() -> Mixture:
    """The ten sets of MetaMorph's data figure in its counts: 16.07 M records, 54 / 31 / 15 of samples.

    Run:     interlace build mixtures:metamorph_paper --data DIR
    Cost:    not measured yet
    Expect:  1.02 passes over what is all there. A set that lost a tenth of its rows, as videos do, runs dry: the error
             says where, and --set max_passes=2 lets it repeat. MetaCLIP takes 5.2 M pairs to give its 5 M.
    """
    return Mixture(
        groups=(
            Group(
                name="understanding",
                members=(
                    _train(corpora.cambrian(), Count(records=7_067_000)),  # figure 11, as all counts here
                    _train(corpora.videostar(), Count(records=1_055_000)),
                    _train(corpora.sharegptvideo(), Count(records=540_000)),
                ),
            ),
            Group(name="generation", members=(_generated(corpora.metaclip(), Count(records=5_000_000)),)),
            Group(
                name="other",
                members=(
                    _train(corpora.howto100m(), Count(records=1_193_000)),
                    _train(corpora.something_something(), Count(records=220_000)),
                    _train(corpora.visual_cot(), Count(records=361_000)),
                    _train(corpora.vstar(), Count(records=148_000)),
                    _train(corpora.instruct_pix2pix(), Count(records=313_000)),
                    _train(_aurora(), Count(records=169_000)),
                ),
            ),
        ),
        max_passes=_NEARLY_ONE_PASS,
    )


def metamorph_public() -> Mixture:
    """mixtures:metamorph with what anybody can get: CC12M in MetaCLIP's place.

    Run:     interlace build mixtures:metamorph_public --data DIR   (CC12M in captions/ under DIR)
    Cost:    not measured yet
    Expect:  as mixtures:metamorph, with a quarter of CC12M's 10.97 M pairs
    """
    whole = metamorph()
    understanding, generation, other = whole.groups
    captioned = replace(generation, members=(_generated(corpora.captions()),))
    return replace(whole, groups=(understanding, captioned, other))


def metamorph_adapter() -> Mixture:
    """MetaMorph's first stage, the adapter: Cambrian's alignment set less LAION's pictures, once.

    Run:     interlace build mixtures:metamorph_adapter --data DIR
    Cost:    not measured yet
    Expect:  rows of allava_laion filtered in the ledger: the paper leaves LAION out (appendix A). If none are, the
             folder is called otherwise there: --set groups.understanding.members.0.corpus.source.without=NAME
    """
    whole = corpora.cambrian_alignment()
    source = replace(whole.source, without=("allava_laion",))
    rest = replace(whole, source=source, max_dropped=0.4)  # LAION's are about 0.5 M of 2.5 M rows
    return Mixture(groups=(Group(name="understanding", members=(_train(rest, Passes(times=1)),)),))


def unlock(generation: int = 200_000, with_understanding: bool = True) -> Mixture:
    """How little it takes to learn to generate: so many captioned pictures beside all of Cambrian-7M, or alone.

    Run:     interlace build 'mixtures:unlock(generation=5000, with_understanding=False)' --data DIR
             generation is 1k, 5k, 10k, 50k, 200k, 1M, 3M, 5M in the paper (MetaMorph, section 3)
    Cost:    not measured yet
    Expect:  FID on COCO-30K (appendix, table 4) beside Cambrian 19.2 at 5k, 15.2 at 200k, 14.4 at 1M, 14.3 at 5M;
             alone 110.7 at 200k, 39.2 at 3M, 27.7 at 5M. A smaller set is the beginning of a larger one.
    """
    wanted = Group(name="generation", members=(_generated(corpora.metaclip(), Count(records=generation)),))
    beside = Group(name="understanding", members=(_train(corpora.cambrian(), Passes(times=1)),))
    return Mixture(groups=(beside, wanted) if with_understanding else (wanted,), max_passes=_NEARLY_ONE_PASS)


def data_types(only: DataType | None = None) -> Mixture:
    """Which data helps to generate: 200,000 captioned pictures, and all of one other type of data or none.

    Run:     interlace build 'mixtures:data_types(only="video_qa")' --data DIR
             image_qa, video_qa, pure_video, visual_thinking, image_to_image; without brackets: none
    Cost:    not measured yet
    Expect:  FID on COCO-30K (MetaMorph, appendix, table 5): none 110.5, image_qa 18.9, video_qa 26.5, pure_video 84.7,
             visual_thinking 93.5, image_to_image 97.5
    """
    types: dict[DataType, tuple[Any, ...]] = {
        "image_qa": (corpora.cambrian,),
        "video_qa": (corpora.videostar, corpora.sharegptvideo),
        "pure_video": (corpora.howto100m, corpora.something_something),
        "visual_thinking": (corpora.visual_cot, corpora.vstar),
        "image_to_image": (corpora.instruct_pix2pix, _aurora),
    }
    wanted = Group(name="generation", members=(_generated(corpora.metaclip(), Count(records=200_000)),))
    beside = () if only is None else types[only]
    others = tuple(_train(make(), Passes(times=1)) for make in beside)
    return Mixture(
        groups=(*((Group(name=only, members=others),) if only else ()), wanted),
        max_passes=_NEARLY_ONE_PASS,
    )


def asymmetry(vqa: int = 1_000_000, generation: int = 200_000) -> Mixture:
    """What understanding gives to generation and generation to understanding: so many questions, so many pictures.

    Run:     interlace build 'mixtures:asymmetry(vqa=4_000_000, generation=1_000_000)' --data DIR
             vqa is 1M, 4M, 7M and generation 200k to 4M in the paper (MetaMorph, section 3)
    Cost:    not measured yet
    Expect:  more questions help both sides much more than more pictures do
    """
    return Mixture(
        groups=(
            Group(name="understanding", members=(_train(corpora.cambrian(), Count(records=vqa)),)),
            Group(name="generation", members=(_generated(corpora.metaclip(), Count(records=generation)),)),
        ),
        max_passes=_NEARLY_ONE_PASS,
    )


def visualizer(pictures: Literal["metaclip", "captions"] = "metaclip") -> Mixture:
    """What MetaMorph's visualizer learns to paint: the captioned pictures that its language model never generates.

    Run:     interlace build mixtures:visualizer --data DIR
             'mixtures:visualizer(pictures="captions")' beside mixtures:metamorph_public
    Cost:    not measured yet; reads the corpus that mixtures:metamorph reads
    Expect:  a tenth of the corpus: 490 thousand of MetaCLIP's 5 M; 12,000 steps of 2,112 are 52 passes over it
    """
    corpus = corpora.metaclip() if pictures == "metaclip" else corpora.captions()
    rest = All(rules=(_TRAIN, Portion(first=_PAINTED)))
    return Mixture(groups=(Group(name="generation", share=1, members=(Member(corpus=corpus, select=rest),)),))


def transfusion() -> Mixture:
    """Transfusion: as many tokens of text documents as of captioned pictures.

    Run:     interlace build mixtures:transfusion --data DIR
    Cost:    not measured yet; every record is read and laid out at each start, before the first step
    Expect:  half of the tokens each at every prefix; captions count with their pictures. The paper's 0.5 T tokens
             (section 4.1) are 250,000 steps of 2 M.
    """
    return Mixture(
        groups=(
            Group(name="text", share=1, members=(_train(corpora.text()),)),
            Group(name="generation", share=1, members=(_train(corpora.caption_pairs()),)),
        ),
        unit="tokens",
    )


def lmfusion() -> Mixture:
    """LMFusion: captioned pictures alone, both learned; its text tower is frozen and needs no text.

    Run:     interlace build mixtures:lmfusion --data DIR
    Cost:    not measured yet
    Expect:  caption_pair records, by key the caption first in 80 of 100 (section 4.1), as the corpus holds them
    """
    return Mixture(groups=(Group(name="generation", share=1, members=(_train(corpora.caption_pairs()),)),))


def metaquery_pretrain() -> Mixture:
    """MetaQuery's pre-training: captioned pictures, eight times each.

    Run:     interlace build mixtures:metaquery_pretrain --data DIR
    Cost:    not measured yet
    Expect:  with the paper's 25 M pairs 48,800 steps of 4,096 (section 4); with CC12M alone 21,000. Its ablations
             take half: --set groups.generation.members.0.amount.times=4
    """
    eight = Passes(times=8)
    return Mixture(groups=(Group(name="generation", members=(_train(corpora.captions(), eight),)),))


def metaquery_instruct() -> Mixture:
    """MetaQuery's instruction tuning: source pictures and an instruction, the target three times each.

    Run:     interlace build mixtures:metaquery_instruct --data DIR
    Cost:    not measured yet
    Expect:  3,400 steps of 2,048 over 2.4 M records (section 4, of the Base model)
    """
    three = Passes(times=3)
    return Mixture(groups=(Group(name="other", members=(_train(corpora.metaquery_instruct(), three),)),))


def metaquery_pairs(writer: str = "Qwen/Qwen2.5-VL-3B-Instruct") -> Mixture:
    """The same on pairs that are made here, of mmc4: source pictures, an instruction of the writer's, the target.

    Run:     interlace build mixtures:metaquery_pairs --data DIR   (mmc4/ under DIR)
    Cost:    not measured yet
    Expect:  records as of mixtures:metaquery_instruct, whose own instructions are not needed
    """
    three = Passes(times=3)
    return Mixture(groups=(Group(name="other", members=(_train(corpora.mmc4_pairs(writer), three),)),))


def edit8k() -> Mixture:
    """Eight thousand edits, as Transfusion and LMFusion are taught to edit.

    Run:     interlace build mixtures:edit8k --data DIR   (aurora/ in its layout of lists; the parquet mixes the parts,
             so most of its rows are left out: --set groups.other.members.0.corpus.max_dropped=1)
    Cost:    not measured yet
    Expect:  8,000 of MagicBrush's 8,807 training edits: the papers say "8k" (LMFusion, section 5.2, tests on
             MagicBrush), not which
    """
    source = Aurora(parts=("magicbrush",))
    edits = _train(replace(corpora.aurora(), source=source), Count(records=8000))
    return Mixture(groups=(Group(name="other", members=(edits,)),), max_passes=_NEARLY_ONE_PASS)


def mini() -> Mixture:
    """Every source of the miniature corpora: mixtures:mini_metamorph, text, and pages of text and pictures.

    Run:     interlace check mixtures:mini --data DIR   (DIR from `interlace mini --data-only DIR`)
    Cost:    7 s and 5 s of Ray's start on two cores (make mini, 2026-11-25)
    Expect:  every source with rows, kept, and drops by reason
    """
    whole = mini_metamorph()
    documents = (corpora.text(), corpora.mmc4())
    text = Group(name="text", share=10, members=tuple(_train(_small(each)) for each in documents))
    return replace(whole, groups=(*whole.groups, text))


def mini_metamorph() -> Mixture:
    """70 / 20 / 10 of samples over the miniature corpora that MetaMorph learns from.

    Run:     interlace build mixtures:mini_metamorph --data DIR   (DIR from `interlace mini --data-only DIR`)
    Cost:    7 s and 5 s of Ray's start on two cores (make mini, 2026-11-25)
    Expect:  chats about pictures and clips, captioned pictures, and records that answer with a picture
    """
    understanding = (
        corpora.cambrian(),
        corpora.cambrian_alignment(),
        corpora.llava(),
        _brief(corpora.videostar()),
        _brief(corpora.sharegptvideo()),
        _brief(corpora.sharegpt4video()),
    )
    other = (
        _brief(corpora.howto100m()),
        _brief(corpora.something_something()),
        corpora.visual_cot(),
        corpora.vstar(),
        corpora.instruct_pix2pix(),
        corpora.aurora(),
        corpora.omniedit(),
        corpora.metaquery_instruct(),
    )
    generation = (corpora.metaclip(), corpora.captions())
    shares = (("understanding", 70, understanding), ("generation", 20, generation), ("other", 10, other))
    return Mixture(
        groups=tuple(
            Group(name=name, share=share, members=tuple(_train(_small(each)) for each in held))
            for name, share, held in shares
        )
    )


def mini_pictures() -> Mixture:
    """What the miniature visualizer sees: captioned pictures and edits, three to one.

    Run:     interlace build mixtures:mini_pictures --data DIR
    Cost:    1 s and 5 s of Ray's start on two cores (make mini, 2026-11-22)
    Expect:  MetaCLIP and InstructPix2Pix of mixtures:mini
    """
    return Mixture(
        groups=(
            Group(name="generation", share=3, members=(_train(_small(corpora.metaclip())),)),
            Group(name="other", share=1, members=(_train(_small(corpora.instruct_pix2pix())),)),
        )
    )


def mini_transfusion() -> Mixture:
    """The miniature corpora as Transfusion reads them: documents, captioned pictures both learned, chats, edits.

    Run:     interlace build mixtures:mini_transfusion --data DIR
    Cost:    2 s and 5 s of Ray's start on two cores beside mixtures:mini (make mini, 2026-11-25)
    Expect:  caption_pair records with the caption first in 80 of 100
    """
    return _shared(
        text=(20, (corpora.text(),)),
        generation=(50, (corpora.caption_pairs(), corpora.metaclip())),
        understanding=(20, (corpora.cambrian(),)),
        other=(10, (corpora.instruct_pix2pix(), corpora.aurora())),
    )


def mini_lmfusion() -> Mixture:
    """The miniature corpora as LMFusion reads them: no text documents, its text tower is frozen.

    Run:     interlace build mixtures:mini_lmfusion --data DIR
    Cost:    as mixtures:mini_transfusion
    Expect:  captioned pictures first, some chats and edits
    """
    return _shared(
        generation=(70, (corpora.caption_pairs(), corpora.metaclip())),
        understanding=(20, (corpora.cambrian(),)),
        other=(10, (corpora.instruct_pix2pix(), corpora.omniedit())),
    )


def mini_llavafusion() -> Mixture:
    """The miniature corpora as LLaVAFusion reads them: chats that it understands already, pictures that it must learn.

    Run:     interlace build mixtures:mini_llavafusion --data DIR
    Cost:    nothing beside mixtures:mini
    Expect:  requests for pictures and edits, and chats about pictures
    """
    return _shared(
        generation=(70, (corpora.metaclip(), corpora.captions())),
        understanding=(20, (corpora.cambrian(), corpora.llava())),
        other=(10, (corpora.instruct_pix2pix(), corpora.aurora())),
    )


def mini_metaquery() -> Mixture:
    """The miniature corpora as MetaQuery reads them: every record asks for a picture.

    Run:     interlace build mixtures:mini_metaquery --data DIR
    Cost:    nothing beside mixtures:mini
    Expect:  captions, edits, subjects and the frames of clips
    """
    return _shared(
        generation=(60, (corpora.metaclip(), corpora.captions())),
        other=(40, (corpora.instruct_pix2pix(), corpora.omniedit(), corpora.metaquery_instruct())),
    )


def _shared(**groups: tuple[int, tuple[Corpus, ...]]) -> Mixture:
    """Groups by name, each a share and its miniature corpora."""
    return Mixture(
        groups=tuple(
            Group(name=name, share=share, members=tuple(_train(_small(each)) for each in held))
            for name, (share, held) in groups.items()
        )
    )


def _understanding() -> tuple[Corpus, ...]:
    return corpora.cambrian(), corpora.videostar(), corpora.sharegptvideo()


def _other() -> tuple[Corpus, ...]:
    return (
        corpora.howto100m(),
        corpora.something_something(),
        corpora.visual_cot(),
        corpora.vstar(),
        corpora.instruct_pix2pix(),
        _aurora(),
    )


def _aurora() -> Corpus:
    """AURORA less its Something-Something part, as MetaMorph counts it: those clips come as themselves."""
    return replace(corpora.aurora(), source=Aurora(parts=("ag", "kubric", "magicbrush")))


def _train(corpus: Corpus, amount: Count | Passes | None = None) -> Member:
    return Member(corpus=corpus, select=_TRAIN, amount=amount)


def _generated(corpus: Corpus, amount: Count | Passes | None = None) -> Member:
    """The captioned pictures that language models learn to generate."""
    return Member(corpus=corpus, select=All(rules=(_TRAIN, Portion(end=_PAINTED))), amount=amount)


def _small(corpus: Corpus) -> Corpus:
    """Shards small enough that a miniature corpus has several; texts short enough for a tiny model."""
    return replace(corpus, rows_per_shard=250, filters=(*corpus.filters, MaxText(characters=400)))


def _brief(corpus: Corpus) -> Corpus:
    """Few frames of a clip: each costs a tiny model as many tokens as a short answer."""
    return replace(corpus, source=replace(corpus.source, frames=6))
