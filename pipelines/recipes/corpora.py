"""Corpora: a source, its filters, its shard size. `interlace build corpora:NAME --data DIR`.

Where each is to be had, under which licence and by which command: docs/corpora.md.
"""

from __future__ import annotations

from typing import Literal

from dataflow.filters import MaxAspect, MaxText, MinSide
from dataflow.sources.aurora import Aurora
from dataflow.sources.cambrian import Cambrian
from dataflow.sources.captions import Captions
from dataflow.sources.howto100m import HowTo100M
from dataflow.sources.instruct_pix2pix import InstructPix2Pix
from dataflow.sources.llava import Llava
from dataflow.sources.metaclip import MetaClip
from dataflow.sources.metaquery_instruct import MetaQueryInstruct
from dataflow.sources.mmc4 import Mmc4
from dataflow.sources.mmc4_pairs import Mmc4Pairs
from dataflow.sources.omniedit import OmniEdit
from dataflow.sources.sharegpt4video import ShareGpt4Video
from dataflow.sources.sharegptvideo import ShareGptVideo
from dataflow.sources.something_something import SomethingSomething
from dataflow.sources.text import TextDocuments
from dataflow.sources.videostar import VideoStar
from dataflow.sources.visual_cot import VisualCot
from dataflow.sources.vstar import VStar
from models.parts import Pretrained
from pipelines.corpus import Corpus
from pipelines.derived import Derived
from pipelines.pairs import Instructions, QwenWriter, Template

# Icons and banners carry no scene: data-juicer's exhibition of LCS-558K has 36:1 banners and 5,177 px high strips.
_PICTURES = (MinSide(pixels=32), MaxAspect(ratio=8.0))
_CHAT = (*_PICTURES, MaxText(characters=12_000))  # about 4,096 tokens, MetaMorph's length, at 3 characters each
_CAPTION = (*_PICTURES, MaxText(characters=2_000))
_GONE = 0.6  # share of videos that may be missing: YouTube's are taken down year by year


def cambrian() -> Corpus:
    """Cambrian-7M: questions about pictures, and text-only rows.

    Run:     interlace build corpora:cambrian --data DIR   (Cambrian-10M: --set source.listing=jsons/Cambrian10M.jsonl)
    Cost:    not measured yet at full size (7.07 M rows)
    Expect:  image_qa and text_qa records; rows whose picture is not there are missing in the ledger
    """
    return Corpus(source=Cambrian(listing=("jsons/Cambrian7M_withsystemprompt.jsonl",)), filters=_CHAT)


def cambrian_alignment() -> Corpus:
    """Cambrian's alignment set: captions for MetaMorph's first stage, the adapter.

    Run:     interlace build corpora:cambrian_alignment --data DIR
    Cost:    not measured yet at full size (2.5 M rows)
    Expect:  image_qa records of one turn
    """
    source = Cambrian(name="cambrian_alignment", listing=("jsons/alignment_2.5m.jsonl",))
    return Corpus(source=source, filters=_CHAT, max_missing=0.3)  # a user counted 634,847 rows without a picture


def llava() -> Corpus:
    """LLaVA-1.5, NeXT or OneVision, and any file of that shape: questions about one or several pictures.

    Run:     interlace build corpora:llava --data DIR   (JSONL: --set 'source.listing=*.jsonl'; YAML of parts likewise)
    Cost:    not measured yet at full size (665 k rows of LLaVA-1.5)
    Expect:  image_qa and text_qa records
    """
    return Corpus(source=Llava(), filters=_CHAT)


def videostar() -> Corpus:
    """VideoStar (Video-STaR's VSTaR-1M): questions about clips of Kinetics, STAR and FineDiving, a frame a second.

    Run:     interlace build corpora:videostar --data DIR
    Cost:    not measured yet at full size (1.06 M rows)
    Expect:  video_qa records; clips that are gone from YouTube are missing in the ledger
    """
    return Corpus(source=VideoStar(), filters=_CHAT, max_missing=_GONE)


def sharegptvideo() -> Corpus:
    """ShareGPTVideo, the ShareVideo of MetaMorph's data figure: questions about folders of frames, one a second.

    Run:     interlace build corpora:sharegptvideo --data DIR
    Cost:    not measured yet at full size (555 k rows; MetaMorph's 540 k lack 15 k captions among them)
    Expect:  video_qa records whose frames are upstream's own JPEGs
    """
    return Corpus(source=ShareGptVideo(), filters=_CHAT)


def sharegpt4video() -> Corpus:
    """ShareGPT4Video: clips in zips and what happens in them, a frame a second.

    Run:     interlace build corpora:sharegpt4video --data DIR
    Cost:    not measured yet at full size (40 k rows)
    Expect:  video_qa records; a request for a description and the caption of the whole clip
    """
    return Corpus(source=ShareGpt4Video(), filters=_CHAT)


def metaclip() -> Corpus:
    """MetaCLIP: pictures with the web's captions, as text_to_image.

    Run:     interlace build corpora:metaclip --data DIR   (without copying: --set shards=adopted)
    Cost:    not measured yet at full size (5 M rows)
    Expect:  one text_to_image record per sample
    """
    return Corpus(source=MetaClip(), filters=_CAPTION)


def captions() -> Corpus:
    """CC12M, BLIP3o, Shutterstock-style tars or parquet: a caption asks, its picture answers.

    Run:     interlace build corpora:captions --data DIR   (without copying: --set shards=adopted)
    Cost:    not measured yet at full size (CC12M: 10.97 M rows)
    Expect:  one text_to_image record per sample
    """
    return Corpus(source=Captions(), filters=_CAPTION)


def caption_pairs() -> Corpus:
    """The same pictures and captions, both learned: Transfusion's and LMFusion's pairs, the caption first in 80 of 100.

    Run:     interlace build corpora:caption_pairs --data DIR   (captions/ under DIR, as for corpora:captions)
    Cost:    not measured yet at full size
    Expect:  one caption_pair record per sample
    """
    return Corpus(source=Captions(task="caption_pair"), filters=_CAPTION)


def text() -> Corpus:
    """Documents of text alone: JSONL, parquet or a line each; the text half of Transfusion.

    Run:     interlace build corpora:text --data DIR   (another column: --set source.column=NAME)
    Cost:    not measured yet at full size
    Expect:  one text_document record per row
    """
    return Corpus(source=TextDocuments(), filters=(MaxText(characters=100_000),))


def something_something() -> Corpus:
    """Something-Something V2: what comes next, what is missing, in which order, from short clips of hands at work.

    Run:     interlace build corpora:something_something --data DIR
    Cost:    not measured yet at full size (220,847 clips)
    Expect:  one frame_prediction record per clip
    """
    return Corpus(source=SomethingSomething(), filters=_PICTURES)


def howto100m() -> Corpus:
    """HowTo100M: frames of narrated instructions to predict.

    Run:     interlace build corpora:howto100m --data DIR
    Cost:    not measured yet at full size (1.2 M videos)
    Expect:  one frame_prediction record per video; those that are gone from YouTube are missing in the ledger
    """
    return Corpus(source=HowTo100M(), filters=_PICTURES, max_missing=_GONE)


def visual_cot() -> Corpus:
    """Visual CoT: a question, the region of the picture that answers it, the answer.

    Run:     interlace build corpora:visual_cot --data DIR
    Cost:    not measured yet at full size (363 k rows)
    Expect:  visual_thinking records whose answers hold a crop; boxes without an area in the ledger
    """
    # A crop is a picture too, and the region that answers is often a word or a hand.
    return Corpus(source=VisualCot(), filters=(MinSide(pixels=8), MaxText(characters=12_000)))


def visualization_of_thought() -> Corpus:
    """Visual CoT under the name that MetaMorph's text gives it (section 2.2 cites Shao et al., who call it Visual CoT).

    Run:     interlace build corpora:visualization_of_thought --data DIR   (visual_cot/ under DIR)
    Cost:    as corpora:visual_cot
    Expect:  the corpus of corpora:visual_cot
    """
    return visual_cot()


def vstar() -> Corpus:
    """V*: a question, the picture with what matters marked by boxes, the answer.

    Run:     interlace build corpora:vstar --data DIR   (picture roots: --data gqa=DIR --data coco2014=DIR ...)
    Cost:    not measured yet at full size (207 k rows in four lists)
    Expect:  visual_thinking records; rows without targets are filtered
    """
    return Corpus(source=VStar(), filters=_CHAT, max_dropped=0.4)  # 59 k of 207 k rows have no targets


def instruct_pix2pix() -> Corpus:
    """InstructPix2Pix: a picture, an instruction, the edited picture.

    Run:     interlace build corpora:instruct_pix2pix --data DIR
    Cost:    not measured yet at full size (313 k rows)
    Expect:  one image_editing record per row of the parquet files, or per seed of the raw folders
    """
    return Corpus(source=InstructPix2Pix(), filters=_PICTURES)


def aurora() -> Corpus:
    """AURORA: edits of actions, places and counts.

    Run:     interlace build corpora:aurora --data DIR
    Cost:    not measured yet at full size (289 k rows)
    Expect:  image_editing records
    """
    return Corpus(source=Aurora(), filters=_PICTURES)


def omniedit() -> Corpus:
    """OmniEdit: a picture, an instruction, the edited picture; what MetaQuery's editing reads.

    Run:     interlace build corpora:omniedit --data DIR
    Cost:    not measured yet at full size (1.2 M rows)
    Expect:  image_editing records
    """
    return Corpus(source=OmniEdit(), filters=_PICTURES)


def metaquery_instruct() -> Corpus:
    """MetaQuery-Instruct: pictures and an instruction, the picture that belongs to them.

    Run:     interlace build corpora:metaquery_instruct --data DIR
    Cost:    not measured yet at full size (2.4 M rows)
    Expect:  subject_driven records with 1 to 5 source pictures
    """
    return Corpus(source=MetaQueryInstruct(), filters=_PICTURES)


def mmc4() -> Corpus:
    """mmc4: web pages as they read, text with pictures in it.

    Run:     interlace build corpora:mmc4 --data DIR
    Cost:    not measured yet at full size (core fewer-faces: 5.5 M pages, 22.4 M pictures)
    Expect:  interleaved_document records; a picture that is gone is counted as missing, its page goes on without it
    """
    return Corpus(source=Mmc4(), filters=(MaxText(characters=24_000),), max_missing=_GONE)


def mmc4_pairs(writer: str = "", target: Literal["average", "minimum"] = "average") -> Derived:
    """MetaQuery's instruction pairs, made anew: pictures of one page and an instruction, the picture it leads to.

    writer: hub id or folder of a Qwen2.5-VL or a Qwen2-VL, a fixed wording where it is left out. The paper's is
    Qwen/Qwen2.5-VL-3B-Instruct, of its code Qwen/Qwen2-VL-7B-Instruct with target='minimum'.

    Run:     interlace build "corpora:mmc4_pairs(writer='Qwen/Qwen2.5-VL-3B-Instruct')" --data DIR   (mmc4/ under DIR)
    Cost:    not measured yet; a reply per group, kept: a build goes on from those that are written
    Expect:  subject_driven records with 1 to 5 source pictures; MetaQuery has 2.4 M of core fewer-faces
    """
    written = QwenWriter(weights=Pretrained(path=writer)) if writer else Template()
    return Derived(
        source=Mmc4Pairs(),
        filters=_PICTURES,
        of=mmc4(),
        measures=(Instructions(writer=written, target=target),),
        max_dropped=1.0,  # most pages have no two pictures with captions alike
    )
