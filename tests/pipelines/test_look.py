"""What a person is shown of a training's input: documents as lines, and the page of a position."""

from __future__ import annotations

from pathlib import Path

import here
import pytest

from dataflow.mini import world
from dataflow.mixture import Group, Member, Mixture
from dataflow.roots import Roots
from dataflow.schedule import Schedule
from models.layout import ByteTokenizer, ChatLayout, PictureLayout, PlainLayout
from pipelines import look
from pipelines.batching import RecordBatches
from pipelines.plan import Opened
from pipelines.recipes.world import pictures, questions, transfusion

CHATS = {
    "image_qa": [("user", [0, "What is it?"]), ("assistant", ["A cat"])],
    "text_to_image": [("user", ["a red cat"]), ("assistant", [0])],
    "caption_pair": [("assistant", [0, "a red cat"])],
    "image_editing": [("user", [0, "redder"]), ("assistant", [1])],
    "visual_thinking": [("user", [0, "Where?"]), ("assistant", ["Look: ", 1, "there"])],
    "text_document": [("assistant", ["Once é"])],
    "interleaved_document": [("assistant", ["Hi", 0, 1, "A cat\nand a dog"])],
}
PLAIN = {
    "image_qa": "<|begin_of_text|><boi>[drawn 0: 4]<eoi>What is it?\n{A cat<|end_of_text|>}",
    "text_to_image": "<|begin_of_text|>a red cat{<boi>[drawn 0: 4]}<eoi>{<|end_of_text|>}",
    "caption_pair": "<|begin_of_text|>{<boi>[drawn 0: 4]}<eoi>{a red cat<|end_of_text|>}",
    "image_editing": "<|begin_of_text|><boi>[drawn 0: 4]<eoi>redder{<boi>[drawn 1: 4]}<eoi>{<|end_of_text|>}",
    "visual_thinking": (
        "<|begin_of_text|><boi>[drawn 0: 4]<eoi>Where?\n{Look: <boi>[drawn 1: 4]}<eoi>{there<|end_of_text|>}"
    ),
    "text_document": "<|begin_of_text|>{Once é<|end_of_text|>}",
    "interleaved_document": (
        "<|begin_of_text|>{Hi<boi>[drawn 0: 4]}<eoi>{<boi>[drawn 1: 4]}<eoi>{A cat\nand a dog<|end_of_text|>}"
    ),
}
_USER = "<|start_header_id|>user<|end_header_id|>\n"
_ASSISTANT = "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n"
CHAT = {
    "image_qa": (
        f"<|begin_of_text|>{_USER}<image_start>[seen 0: 4]<image_end>What is it?{_ASSISTANT}{{A cat<|eot_id|>}}"
    ),
    "text_to_image": (
        f"<|begin_of_text|>{_USER}Show me a picture of a red cat{_ASSISTANT}"
        "{Here is an image based on your request: <image_start>[seen 0: 4]<image_end><|eot_id|>}"
    ),
    "visual_thinking": (
        f"<|begin_of_text|>{_USER}<image_start>[seen 0: 4]<image_end>Where?{_ASSISTANT}"
        "{Look: <image_start>[seen 1: 4]<image_end>there<|eot_id|>}"
    ),
}


@pytest.mark.parametrize("task", PLAIN)
def test_a_plain_document_reads_as_its_golden(task: str) -> None:
    layout = PlainLayout(tokenizer=ByteTokenizer(), picture_tokens=4)
    assert look.spelled(layout.lay_out(CHATS[task], task=task, key="k"), layout) == PLAIN[task]


@pytest.mark.parametrize("task", CHAT)
def test_a_chat_reads_as_its_golden(task: str) -> None:
    layout = ChatLayout(tokenizer=ByteTokenizer(), picture_tokens=4)
    assert look.spelled(layout.lay_out(CHATS[task], task=task, key="k"), layout) == CHAT[task]


def test_a_visualizers_document_is_its_pictures() -> None:
    document = PictureLayout().lay_out(CHATS["image_editing"], task="image_editing", key="k")
    assert look.spelled(document, PictureLayout()) == "[drawn 0: 1][drawn 1: 1]"


def test_the_page_shows_text_pictures_and_masks_of_a_position_and_escapes_captions(tmp_path: Path) -> None:
    world.write(tmp_path / "data")
    caption = tmp_path / "data/world_pictures/world-0000.tar"
    caption.write_bytes(caption.read_bytes().replace(b"a red circle", b"<b>red</b>cc"))
    roots = Roots.parse([str(tmp_path / "data")])
    built = [
        here.build(corpus.source, roots, tmp_path / corpus.name, rows=4000) for corpus in (pictures(), questions())
    ]
    mixture = Mixture(
        groups=(
            Group(name="generation", share=2, members=(Member(corpus=pictures()),)),
            Group(name="understanding", share=1, members=(Member(corpus=questions()),)),
        )
    )
    training = transfusion()
    schedule = Schedule(
        mixture=mixture,
        names=("world_pictures", "world_questions"),
        digests=tuple(corpus.digest for corpus in built),
        rows=tuple(len(corpus) for corpus in built),
        batch=64,
        positions=40,
        lengths=(),
    )
    batches = RecordBatches(
        schedule=schedule,
        opened=tuple(Opened(corpus=corpus.folder, selection=None) for corpus in built),
        architecture=training.architecture,
        length=192,
        seed=0,
    )
    pages = [look.page(training, batches, position, tmp_path / "look.html").read_text() for position in range(40)]
    assert all("64 rows a position; here: world_pictures 8, world_questions 4" in page for page in pages)
    assert all(page.count("data:image/png") == 24 for page in pages)  # a picture and a mask of each row
    assert all("<b>red" not in page for page in pages) and any("&lt;b&gt;red" in page for page in pages)
    with pytest.raises(ValueError, match="position 40: this training has 0 to 39"):
        look.page(training, batches, 40, tmp_path / "look.html")
