"""A chat laid out: the template, what is learned, and that no caption can spell the template's own tokens."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from models.layout import (
    ANNOUNCEMENTS,
    CONTROL,
    REQUESTS,
    ByteTokenizer,
    ChatLayout,
    Document,
    FileTokenizer,
    PictureLayout,
    Tokenizer,
)

QUESTION = [("user", [0, "What?"]), ("assistant", ["A cat"])]
REQUEST = [("user", ["a red cat"]), ("assistant", [0])]


@pytest.fixture(params=["bytes", "file"])
def tokenizer(request: pytest.FixtureRequest, tmp_path: Path, save_tokenizer: Callable[..., None]) -> Tokenizer:
    if request.param == "bytes":
        return ByteTokenizer()
    save_tokenizer(tmp_path)
    return FileTokenizer(tmp_path)


@pytest.fixture
def layout(tokenizer: Tokenizer) -> ChatLayout:
    return ChatLayout(tokenizer=tokenizer, picture_tokens=4)


def spelled(layout: ChatLayout, document: Document) -> str:
    """The document as a reader sees it: control tokens and marks by name, picture tokens as #."""
    names = {layout.tokenizer.control(name): name for name in CONTROL}
    names |= {layout.image_start: "<image_start>", layout.image_end: "<image_end>"}
    inside = {slot.start + i for slot in document.slots for i in range(layout.picture_tokens)}
    text = ""
    for place, number in enumerate(document.ids):
        text += "#" if place in inside else names.get(number) or layout.tokenizer.decode([number])
    return text


def learned(layout: ChatLayout, document: Document) -> str:
    """The learned ids alone, spelled."""
    kept = [number for number, target in zip(document.ids, document.targets, strict=True) if target]
    return spelled(layout, Document(tuple(kept), (True,) * len(kept), ()))


def test_the_template_has_one_newline_after_each_header_and_a_picture_between_its_marks(layout: ChatLayout) -> None:
    assert spelled(layout, layout.lay_out(QUESTION, task="image_qa", key="k")) == (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n<image_start>####<image_end>What?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\nA cat<|eot_id|>"
    )


def test_everything_the_assistant_says_is_learned_and_nothing_else(layout: ChatLayout) -> None:
    assert learned(layout, layout.lay_out(QUESTION, task="image_qa", key="k")) == "A cat<|eot_id|>"
    document = layout.lay_out(REQUEST, task="text_to_image", key="k")
    assert learned(layout, document) == f"{ANNOUNCEMENTS[0]}<image_start><image_end><|eot_id|>"


def test_slots_say_where_a_picture_starts_and_who_said_it(layout: ChatLayout) -> None:
    chat = [("user", [1, "and", 0]), ("assistant", [2, "so"])]
    document = layout.lay_out(chat, task="visual_thinking", key="k")
    assert [(slot.picture, slot.answer) for slot in document.slots] == [(1, False), (0, False), (2, True)]
    for slot in document.slots:
        assert document.ids[slot.start - 1] == layout.image_start
        assert document.ids[slot.start : slot.start + 5] == (0, 0, 0, 0, layout.image_end)
        assert not any(document.targets[slot.start : slot.start + 4])


def test_the_marks_follow_the_tokenizer(layout: ChatLayout) -> None:
    assert (layout.image_start, layout.image_end) == (layout.tokenizer.size, layout.tokenizer.size + 1)


@pytest.mark.parametrize("caption", [*CONTROL, "a <|eot_id|> b", "<image_start>", "<image_end>", "é 猫 \n"])
def test_a_caption_that_spells_a_control_token_stays_text(tokenizer: Tokenizer, caption: str) -> None:
    ids = tokenizer.encode(caption)
    assert not {tokenizer.control(name) for name in CONTROL} & set(ids)
    assert max(ids) < tokenizer.size
    assert tokenizer.decode(ids) == caption


def test_the_wording_of_a_request_is_chosen_by_key_and_all_wordings_occur(layout: ChatLayout) -> None:
    texts = {
        key: spelled(layout, layout.lay_out(REQUEST, task="text_to_image", key=key)) for key in map(str, range(64))
    }
    for request in REQUESTS:
        assert any(request.format("a red cat") in text for text in texts.values())
    assert texts["7"] == spelled(layout, layout.lay_out(REQUEST, task="text_to_image", key="7"))


def test_a_caption_with_braces_is_kept_as_it_is(layout: ChatLayout) -> None:
    chat = [("user", ["{0} {} {name}"]), ("assistant", [0])]
    assert "{0} {} {name}" in spelled(layout, layout.lay_out(chat, task="text_to_image", key="k"))


@pytest.mark.parametrize("task", ["image_qa", "visual_thinking", "frame_prediction", "subject_driven"])
def test_other_tasks_are_laid_out_in_their_own_words(layout: ChatLayout, task: str) -> None:
    chat = [("user", [0, "go on"]), ("assistant", [1])]
    text = spelled(layout, layout.lay_out(chat, task=task, key="k"))
    assert "<image_end>go on<|eot_id|>" in text
    assert text.endswith("assistant<|end_header_id|>\n<image_start>####<image_end><|eot_id|>")


def test_a_picture_prompt_is_the_beginning_of_its_training_document(layout: ChatLayout) -> None:
    whole = layout.lay_out(REQUEST, task="text_to_image", key="k")
    prompt = layout.prompt(REQUEST[:1], task="text_to_image", key="k", answer="picture")
    assert prompt.ids == whole.ids[: len(prompt)]
    assert prompt.ids[-1] == layout.image_start
    assert len(prompt) == whole.slots[0].start
    assert not any(prompt.targets)


def test_a_text_prompt_is_the_beginning_of_its_training_document(layout: ChatLayout) -> None:
    whole = layout.lay_out(QUESTION, task="image_qa", key="k")
    for answer in ("text", "free"):
        prompt = layout.prompt(QUESTION[:1], task="image_qa", key="k", answer=answer)
        assert prompt.ids == whole.ids[: len(prompt)]
        assert prompt.slots == whole.slots
        assert whole.targets.index(True) == len(prompt)


def test_the_visualizers_layout_has_a_token_for_each_picture_and_learns_all() -> None:
    document = PictureLayout().lay_out([("user", [0, "x", 2]), ("assistant", [1])], task="image_qa", key="k")
    assert len(document) == 3
    assert [(slot.start, slot.picture, slot.answer) for slot in document.slots] == [
        (0, 0, True),
        (1, 2, True),
        (2, 1, True),
    ]
    assert not any(document.targets)


def test_a_tokenizer_without_the_control_tokens_is_refused(tmp_path: Path, save_tokenizer: Callable[..., None]) -> None:
    save_tokenizer(tmp_path, control=CONTROL[:3])
    with pytest.raises(ValueError, match=r"lacks <\|eot_id\|>, <\|end_of_text\|>: use an instruct model"):
        FileTokenizer(tmp_path)
    with pytest.raises(ValueError, match="no tokenizer at"):
        FileTokenizer(tmp_path / "nowhere")


def test_layouts_and_configs_need_no_torch() -> None:
    code = (
        "import sys; import models.configs as c; import models.pretrained;"
        "l = c.MetaMorph(backbone=c.Llama(width=8, layers=1, heads=1, kv_heads=1, ffn=8),"
        " vision=c.Siglip(picture=8, patch=4, width=8, layers=1, heads=1, ffn=8), grid=2).layout();"
        "l.lay_out([('user', ['a'])], task='text_qa', key='k'); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
