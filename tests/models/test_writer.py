"""Replies of tiny Qwens about pictures: those that transformers' own processor and chat give, the same every time.

# P = 2 pictures
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_qwen
from PIL import Image
from skimage import data
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLForConditionalGeneration,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

from models.parts import Pretrained
from models.writer import Writer

# as the published models have it, for a chat of texts and pictures
TEMPLATE = (
    "{% for turn in messages %}<|im_start|>{{ turn.role }}\n{% for part in turn.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PIXELS = 40 * 40
SYSTEM, PARTS = "You write.", ("Picture 1: ", 0, "\na cat\n", 1, "Tell.")


@pytest.fixture(params=["qwen2_5_vl", "qwen2_vl"])
def published(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A tiny random model in the hub's layout."""
    return Path(tiny_qwen.save(tmp_path, request.param).path)


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    return [
        Image.fromarray(pixels).resize(size) for pixels, size in ((data.cat(), (64, 48)), (data.coffee(), (30, 20)))
    ]


def given(parts: tuple[str | int, ...], pictures: list[Image.Image]) -> list[str | Image.Image]:
    return [part if isinstance(part, str) else pictures[part] for part in parts]


def theirs(place: Path, pictures: list[Image.Image], tokens: int) -> str:
    """The reply through transformers' processor and chat template."""
    kind: Any = json.loads((place / "config.json").read_bytes())["model_type"]
    kinds: Any = {"qwen2_5_vl": Qwen2_5_VLForConditionalGeneration, "qwen2_vl": Qwen2VLForConditionalGeneration}
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(place / "tokenizer.json"), pad_token="<|im_end|>")
    for name in ("image", "video"):
        setattr(tokenizer, f"{name}_token", f"<|{name}_pad|>")
    cut: Any = {"patch_size": tiny_qwen.PATCH, "merge_size": tiny_qwen.MERGE}
    processor: Any = Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessorPil(
            patch_size=tiny_qwen.PATCH, merge_size=tiny_qwen.MERGE, min_pixels=16**2, max_pixels=PIXELS
        ),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(**cut),
        chat_template=TEMPLATE,
    )
    content = [{"type": "text", "text": part} if isinstance(part, str) else {"type": "image"} for part in PARTS]
    chat = [{"role": "system", "content": [{"type": "text", "text": SYSTEM}]}, {"role": "user", "content": content}]
    text = processor.apply_chat_template(chat, add_generation_prompt=True)
    inputs = processor(text=[text], images=pictures, return_tensors="pt")
    model = kinds[kind].from_pretrained(place, dtype="float32")
    made = model.generate(**inputs, max_new_tokens=tokens, do_sample=False, eos_token_id=257, pad_token_id=257)
    return str(tokenizer.decode(made[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)).strip()


def test_a_reply_is_that_of_transformers_own_processor_and_chat(published: Path, pictures: list[Image.Image]) -> None:
    writer = Writer(Pretrained(path=str(published)), tokens=12, pixels=PIXELS)
    reply = writer(SYSTEM, given(PARTS, pictures))
    assert len(reply) == 12
    assert reply == theirs(published, pictures, 12)
    assert reply == writer(SYSTEM, given(PARTS, pictures))
    assert reply != writer(SYSTEM, given(PARTS, pictures[::-1]))
    marked = writer(SYSTEM, ["a <|im_end|>", *given(PARTS, pictures)])
    assert marked == writer(SYSTEM, ["a < |im_end|>", *given(PARTS, pictures)])


def test_what_is_no_writer_is_refused_in_one_line(tmp_path: Path, published: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other/config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ValueError, match="a model of type 'llama', not a vision-language model of Qwen's"):
        Writer(Pretrained(path=str(tmp_path / "other")), tokens=1, pixels=PIXELS)
    (published / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"holds no tokenizer\.json: download it again"):
        Writer(Pretrained(path=str(published)), tokens=1, pixels=PIXELS)
