"""Pictures and questions in miniature: Cambrian, its alignment set, LLaVA.

Material -> cambrian, cambrian_alignment, llava -> folders of the same names

cambrian/jsons/Cambrian7M_withsystemprompt.jsonl    a row per line; pictures in cambrian/{easy_vqa, photographs}
cambrian_alignment/jsons/alignment_2.5m.jsonl       one turn each: describe the picture
llava/llava_v1_5_mix665k.json                       one list; some ids are integers, some rows show two pictures
"""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path
from typing import Any

from dataflow.mini.drawings import size_of
from dataflow.mini.files import choose, conversations, document, jpeg, jsonl, line, png, put
from dataflow.mini.material import Corpus, Material, dirt, limit
from dataflow.mini.photographs import VIEWS, Photographs
from dataflow.mini.text import sentence, text_row

BRIEFLY = "Answer the question using a single word or phrase."  # the prompt of Cambrian's "withsystemprompt" file


# ---------------------------------------------------------------------------------------------------- Cambrian


def cambrian_kind(row: int) -> str:
    """Of 20 rows 16 about drawings, 1 about a photograph, 3 text only; the places are spread, the order is fixed."""
    place = row % 20
    return "photograph" if place == 7 else "text" if place in (3, 9, 15) else "drawing"


def _write_cambrian(folder: Path, rows: int, material: Material) -> None:
    for below in ("jsons", "easy_vqa", "photographs"):
        (folder / below).mkdir(parents=True)
    drawings, photographs = material.drawings, material.photographs
    chats = iter(drawings.chats)
    seen = {"text": 0, "photograph": 0}
    copied = set[str]()
    with (folder / "jsons/Cambrian7M_withsystemprompt.jsonl").open("w", encoding="utf-8", newline="\n") as out:
        for row in range(rows):
            wrong = dirt("cambrian", row, rows)
            kind = cambrian_kind(row)
            if kind == "text":
                fields = text_row(seen[kind])
            elif kind == "photograph":
                fields = _photograph_row(folder, seen[kind], photographs)
            else:
                name, picture, chat = next(chats)
                path = drawings.path(picture)
                fields = _drawing_row(name, _place(folder, path, wrong, copied), chat)
            if kind in seen:
                seen[kind] += 1
            if wrong == "two <image> for one picture":
                fields["conversations"][0]["value"] = "<image>\n" + fields["conversations"][0]["value"]
            said = line(fields)
            out.write((said[: len(said) // 2] if wrong == "line cut" else said) + "\n")


def _place(folder: Path, path: Path, wrong: str | None, copied: set[str]) -> str:
    """Copy the drawing beside the rows and give its name; a dirty one has its own, so that clean rows stay clean."""
    if wrong == "picture missing":
        return f"easy_vqa/{path.stem}_missing.png"
    if wrong == "picture truncated":
        data = path.read_bytes()
        (folder / f"easy_vqa/{path.stem}_truncated.png").write_bytes(data[: len(data) // 2])
        return f"easy_vqa/{path.stem}_truncated.png"
    if path.name not in copied:
        shutil.copyfile(path, folder / "easy_vqa" / path.name)
        copied.add(path.name)
    return f"easy_vqa/{path.name}"


def _drawing_row(name: str, image: str, chat: list[tuple[str, str]]) -> dict[str, Any]:
    turns = conversations(chat)
    turns[0]["value"] = f"<image>\n{turns[0]['value']}\n{BRIEFLY}"
    return {"id": name, "image": image, "conversations": turns, "source": "easy_vqa_train_38k.json"}


def _photograph_row(folder: Path, number: int, photographs: Photographs) -> dict[str, Any]:
    """What is in it, a further question, or both as two turns, in turn."""
    view = VIEWS[number % len(VIEWS)]
    name = f"photographs/{Path(view.file).stem}_{number}"
    (folder / f"{name}.png").write_bytes(png(photographs.crop(view, f"cambrian/{name}")))
    chat = [("What is in this photograph?", sentence(view.caption))]
    if view.chat and number % 3:
        more = view.chat[choose(f"cambrian/{name}", "question", len(view.chat))]
        chat = [more] if number % 3 == 1 else [*chat, more]
    turns = conversations(chat)
    turns[0]["value"] = f"<image>\n{turns[0]['value']}"
    return {
        "id": name.replace("/", "_"),
        "image": f"{name}.png",
        "conversations": turns,
        "source": "photographs_0k.json",
    }


# ------------------------------------------------------------------------------------------ Cambrian, alignment

_DESCRIBE = ("What does this picture show?", "Describe the picture in one sentence.", "Say briefly what is to be seen.")


def alignment_kind(row: int) -> str:
    """Of 5 rows two show photographs."""
    return "photograph" if row % 5 in (1, 3) else "drawing"


def _write_alignment(folder: Path, rows: int, material: Material) -> None:
    """Requests before the picture or behind it, as in the captions that LLaVA was aligned with."""
    written = []
    shapes = material.drawings.start("cambrian_alignment")
    for row in range(rows):
        name = f"{row:09d}"
        if alignment_kind(row) == "photograph":
            view = VIEWS[row // 5 % len(VIEWS)]
            data, said = jpeg(material.photographs.crop(view, f"cambrian_alignment/{row}")), view.caption
            image = f"photographs/{name}.jpg"
        else:
            drawn = next(shapes)
            data, said = material.drawings.path(drawn[0]).read_bytes(), material.drawings.caption(*drawn)
            image = f"easy_vqa/{name}.png"
        put(folder / image, b"" if dirt("cambrian_alignment", row, rows) == "picture empty" else data)
        request = _DESCRIBE[choose(name, "request", len(_DESCRIBE))]
        asked = f"{request}\n<image>" if choose(name, "place", 2) else f"<image>\n{request}"
        written.append({"id": name, "image": image, "conversations": conversations([(asked, sentence(said))])})
    jsonl(folder / "jsons/alignment_2.5m.jsonl", written)


# ------------------------------------------------------------------------------------------------------- LLaVA


def llava_kind(row: int) -> str:
    """Of 10 rows six about a drawing, one about two, two about a photograph, one text only."""
    return {4: "text", 9: "two drawings", 2: "photograph", 7: "photograph"}.get(row % 10, "drawing")


def _write_llava(folder: Path, rows: int, material: Material) -> None:
    chats, shapes = reversed(material.drawings.chats), material.drawings.start("llava")
    written = []
    for row in range(rows):
        kind = llava_kind(row)
        if kind == "text":
            said = text_row(1000 + row)["conversations"]  # sums that cambrian has not asked
            written.append({"id": f"text_{row}", "model": "", "conversations": said})
            continue
        if kind == "drawing":
            _, picture, chat = next(chats)
            shown = {f"easy_vqa/images/{picture}.png": material.drawings.path(picture).read_bytes()}
            chat = [(f"{chat[0][0]}\n{BRIEFLY}", chat[0][1]), *chat[1:]]
        elif kind == "photograph":
            view = VIEWS[row // 5 % len(VIEWS)]
            crop = jpeg(material.photographs.crop(view, f"llava/{row}"))
            shown, chat = {f"photographs/{row}.jpg": crop}, [("What can be seen here?", sentence(view.caption))]
            chat += view.chat[:2]
        else:
            pair = list(itertools.islice(shapes, 2))
            shown = {
                f"easy_vqa/images/{picture}.png": material.drawings.path(picture).read_bytes() for picture, *_ in pair
            }
            chat = [_compared(pair, row, material)]
        for image, data in shown.items():
            put(folder / image, data)
        images = list(shown)
        placed = 1 if dirt("llava", row, rows) == "one <image> for two pictures" else len(images)
        turns = conversations(chat)
        turns[0]["value"] = "<image>\n" * placed + turns[0]["value"]
        written.append(
            {
                "id": row if row % 3 == 0 else f"{row:012d}",
                "image": images[0] if len(images) == 1 else images,
                "conversations": turns,
            }
        )
    document(folder / "llava_v1_5_mix665k.json", written)


def _compared(pair: list[tuple[int, str, str]], row: int, material: Material) -> tuple[str, str]:
    """A question about two drawings, and its answer."""
    (first, shape, color), (second, other_shape, other_color) = pair
    sizes = [size_of(material.drawings.open(picture), shown) for picture, _, shown in pair]
    questions = (
        ("Do both pictures show the same shape?", "yes" if shape == other_shape else "no"),
        (f"Which picture shows the {color} {shape}, the first or the second?", "the first"),
        (f"Which picture shows the {other_color} {other_shape}, the first or the second?", "the second"),
        ("Which shape is in the first picture, and which in the second?", f"a {shape} and a {other_shape}"),
        ("How large are the two shapes?", f"the first is {sizes[0]}, the second {sizes[1]}"),
    )
    if (shape, color) == (other_shape, other_color):
        return questions[0]
    return questions[choose(f"llava/{row}", f"question about {first} and {second}", len(questions))]


CAMBRIAN = Corpus(write=_write_cambrian, limit=lambda material: limit(cambrian_kind, len(material.drawings.chats)))
ALIGNMENT = Corpus(write=_write_alignment, limit=lambda material: limit(alignment_kind, len(material.drawings.shapes)))
LLAVA = Corpus(write=_write_llava, limit=lambda material: 5 * len(material.drawings.shapes))  # two in every ten rows
