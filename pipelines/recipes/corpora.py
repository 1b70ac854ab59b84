"""Corpora: a source, its filters, its shard size. `interlace build corpora:NAME --data DIR`."""

from __future__ import annotations

from dataflow.filters import MaxAspect, MaxText, MinSide
from dataflow.sources.cambrian import Cambrian
from dataflow.sources.instruct_pix2pix import InstructPix2Pix
from dataflow.sources.metaclip import MetaClip
from pipelines.corpus import Corpus

# Icons and banners carry no scene: data-juicer's exhibition of LCS-558K has 36:1 banners and 5,177 px high strips.
_PICTURES = (MinSide(pixels=32), MaxAspect(ratio=8.0))


def cambrian() -> Corpus:
    """Cambrian-7M: questions about pictures, and text-only rows.

    Run:     interlace build corpora:cambrian --data DIR
    Cost:    not measured yet at full size (7.07 M rows)
    Expect:  image_qa and text_qa records; rows without a picture file in the ledger
    """
    return Corpus(source=Cambrian(), filters=(*_PICTURES, MaxText(characters=12_000)))


def metaclip() -> Corpus:
    """MetaCLIP: pictures with the web's captions, as text_to_image.

    Run:     interlace build corpora:metaclip --data DIR
    Cost:    not measured yet at full size
    Expect:  one text_to_image record per sample
    """
    return Corpus(source=MetaClip(), filters=(*_PICTURES, MaxText(characters=2_000)))


def instruct_pix2pix() -> Corpus:
    """InstructPix2Pix: a picture, an instruction, the edited picture.

    Run:     interlace build corpora:instruct_pix2pix --data DIR
    Cost:    not measured yet at full size (313 k rows)
    Expect:  one image_editing record per row
    """
    return Corpus(source=InstructPix2Pix(), filters=_PICTURES)
