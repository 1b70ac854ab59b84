"""A chat laid out: the template, what is learned, and that no caption can spell the template's own tokens."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from models.layout import (
    ANNOUNCEMENTS,
    CHATML,
    CONTROL,
    LLAMA2,
    REQUESTS,
    ByteTokenizer,
    ChatLayout,
    Document,
    FileTokenizer,
    PictureLayout,
    PlainLayout,
    Slot,
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


def spelled(layout: ChatLayout | PlainLayout, document: Document) -> str:
    """The document as a reader sees it: control tokens and marks by name, picture tokens as #."""
    names = {layout.tokenizer.control(name): name for name in layout.template.controls}
    names |= {layout.image_start: "<image_start>", layout.image_end: "<image_end>"}
    inside = {slot.start + i for slot in document.slots for i in range(slot.tokens)}
    text = ""
    for place, number in enumerate(document.ids):
        text += "#" if place in inside else names.get(number) or layout.tokenizer.decode([number])
    return text


def part(layout: ChatLayout | PlainLayout, document: Document, which: tuple[bool, ...]) -> str:
    """Some of the document's places, spelled."""
    inside = {slot.start + i for slot in document.slots for i in range(slot.tokens)}
    places = [place for place, kept in enumerate(which) if kept]
    ids = tuple(document.ids[place] for place in places)
    shown = tuple(Slot(i, 0, False, 1, "seen", False) for i, place in enumerate(places) if place in inside)
    return spelled(layout, Document(ids, (False,) * len(ids), shown, (False,) * len(ids)))


def learned(layout: ChatLayout | PlainLayout, document: Document) -> str:
    """The learned ids alone, spelled."""
    return part(layout, document, document.targets)


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


def test_a_condition_is_what_comes_before_an_answer_of_pictures_alone(layout: ChatLayout) -> None:
    edit = layout.lay_out([("user", [0, "redder"]), ("assistant", [1])], task="subject_driven", key="k")
    assert part(layout, edit, edit.condition) == "<image_start>####<image_end>redder"
    for chat in (QUESTION, [("user", ["draw"]), ("assistant", [0, "and so"])]):
        assert not any(layout.lay_out(chat, task="visual_thinking", key="k").condition)
    asked = layout.prompt([("user", [0, "redder"])], task="subject_driven", key="k", answer="picture")
    assert asked.condition == edit.condition[: len(asked)]


def test_a_slot_says_whether_text_follows_its_picture(layout: ChatLayout) -> None:
    chat = [("user", [0, "go on"]), ("assistant", [1, "so", 2])]
    document = layout.lay_out(chat, task="visual_thinking", key="k")
    assert [slot.followed for slot in document.slots] == [True, True, False]


def test_a_chat_of_another_family_is_written_as_that_family_writes(
    tmp_path: Path, save_tokenizer: Callable[..., None]
) -> None:
    save_tokenizer(tmp_path, control=CHATML.controls)
    tokenizer = FileTokenizer(tmp_path, CHATML.controls)
    layout = ChatLayout(tokenizer=tokenizer, picture_tokens=4, template=CHATML)
    document = layout.lay_out(QUESTION, task="image_qa", key="k")
    assert spelled(layout, document) == (
        "<|im_start|>user\n<image_start>####<image_end>What?<|im_end|>\n<|im_start|>assistant\nA cat<|im_end|>\n"
    )
    assert learned(layout, document) == "A cat<|im_end|>"  # not the newline behind it


def test_a_base_model_of_documents_alone_gets_no_chats() -> None:
    with pytest.raises(ValueError, match="a chat needs the template of an instruct model"):
        ChatLayout(tokenizer=ByteTokenizer(), picture_tokens=4, template=LLAMA2)


BOT, EOT = "<|begin_of_text|>", "<|end_of_text|>"
PLAIN: dict[str, tuple[list, str, str, str]] = {  # chat, whole, learned, condition
    "caption first": (
        [("assistant", ["a red cat", 0])],
        f"{BOT}a red cat<image_start>####<image_end>{EOT}",
        f"a red cat<image_start>{EOT}",
        "a red cat",
    ),
    "picture first": (
        [("assistant", [0, "a red cat"])],
        f"{BOT}<image_start>####<image_end>a red cat{EOT}",
        f"<image_start>a red cat{EOT}",
        "",
    ),
    "question": (
        [("user", [0, "What?"]), ("assistant", ["A cat"])],
        f"{BOT}<image_start>####<image_end>What?\nA cat{EOT}",
        f"A cat{EOT}",
        "",
    ),
    "edit": (
        [("user", [0, "redder"]), ("assistant", [1])],
        f"{BOT}<image_start>####<image_end>redder<image_start>####<image_end>{EOT}",
        f"<image_start>{EOT}",
        "<image_start>####<image_end>redder",
    ),
}


@pytest.mark.parametrize("case", PLAIN)
def test_a_plain_document_is_what_is_said_end_to_end(tokenizer: Tokenizer, case: str) -> None:
    layout = PlainLayout(tokenizer=tokenizer, picture_tokens=4)
    chat, whole, said, condition = PLAIN[case]
    document = layout.lay_out(chat, task="image_qa", key="k")
    assert spelled(layout, document) == whole
    assert learned(layout, document) == said
    assert part(layout, document, document.condition) == condition
    assert all(slot.view == "drawn" for slot in document.slots)


def test_a_plain_prompt_is_the_beginning_of_its_training_document(tokenizer: Tokenizer) -> None:
    layout = PlainLayout(tokenizer=tokenizer, picture_tokens=4)
    for case, answer in (("question", "text"), ("question", "free"), ("edit", "picture")):
        chat = PLAIN[case][0]
        whole = layout.lay_out(chat, task="image_qa", key="k")
        prompt = layout.prompt(chat[:1], task="image_qa", key="k", answer=answer)  # pyright: ignore[reportArgumentType]
        assert prompt.ids == whole.ids[: len(prompt)]
        assert not any(prompt.targets)
        assert (prompt.ids[-1] == layout.image_start) == (answer == "picture")


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
    with pytest.raises(ValueError, match=r"lacks <\|eot_id\|>, <\|end_of_text\|>: give weights of its family"):
        FileTokenizer(tmp_path)
    with pytest.raises(ValueError, match="no tokenizer at"):
        FileTokenizer(tmp_path / "nowhere")


def test_layouts_and_configs_need_no_torch() -> None:
    code = (
        "import sys; import models.configs as c; import models.parts as p; import models.pretrained, models.views;"
        "l = c.MetaMorph(backbone=p.Llama(width=8, layers=1, heads=1, kv_heads=1, ffn=8),"
        " vision=p.Siglip(picture=8, patch=4, width=8, layers=1, heads=1, ffn=8), grid=2).layout();"
        "l.lay_out([('user', ['a'])], task='text_qa', key='k'); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
