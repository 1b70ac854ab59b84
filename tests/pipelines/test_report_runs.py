"""Runs on one page: common plots, one table, what differs between their recipes, answers to a prompt over time."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import by_hand
import pytest
from PIL import Image

from models.configs import Transfusion
from models.parts import LinearCoder, Llama, Pixels, UNetCoder
from pipelines import compared, curves, journal, report, runs, watched
from pipelines.learning import Outcome

ARCHITECTURE = Transfusion(
    backbone=Llama(width=32, layers=1, heads=2, kv_heads=2, ffn=48), canvas=Pixels(side=16), coder=LinearCoder(patch=4)
)


def trained(folder: Path, losses: list[float], *, attempts: tuple[int, ...] = (), **changes: Any) -> Path:
    """A run with a journal: a step for each loss, a new attempt before each step of `attempts`."""
    training = replace(by_hand.training(ARCHITECTURE), steps=len(losses), **changes)
    runs.described(folder, training, "by_hand:made")
    row = {"group": "und<i>", "source": "<b>vqa</b>", "records": 9, "planned": 40, "share": 1.0, "passes": 1.0}
    (folder / "plan.json").write_text(json.dumps({"mixture": [row]}))
    with journal.journal(folder, 0) as told:
        for step, loss in enumerate(losses, 1):
            number = 1 + sum(step >= begun for begun in attempts)
            outcome = Outcome(
                losses={"text": loss, "picture": None},
                total=loss,
                counts={"text": 5, "picture": 0},
                fed={"<b>vqa</b>": 4},
                tokens={"<b>vqa</b>": 30},
                drawn={"<b>vqa</b>": 0},
                places=40,
                norm=1.0,
                by={"source": {"<b>vqa</b>": {"text": loss}}, "task": {"image_qa": {"text": loss}}, "group": {}},
            )
            seconds = {"seconds": 0.5, "data_seconds": 0.05, "save_seconds": 0.0}
            told.add(step, outcome, 0.01, seconds, Path(f"attempt-{number:03d}"))
    return folder


def plots(page: str) -> dict[str, ElementTree.Element]:
    """Every drawing of the page by its title; each is well-formed."""
    drawn = (ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", page, re.S))
    return {svg.attrib["aria-label"]: svg for svg in drawn}


def test_several_runs_stand_in_common_plots_and_one_table(tmp_path: Path) -> None:
    first = trained(tmp_path / "first", [3.0, 2.0, 1.0, 0.5], attempts=(3,))
    for number, ended in enumerate(("rank 1 was killed <at> step 3", None), 1):
        attempt = first / "ray" / f"attempt-{number:03d}"
        attempt.mkdir(parents=True)
        told = {"workers": 2, "from": None if ended else "step-000002", "ended": ended}
        (attempt / "attempt.json").write_text(json.dumps(told))
    second = trained(tmp_path / "second", [3.0, 2.5, 2.0], seed=7)
    page = report.write(tmp_path / "page.html", [first, second]).read_text()
    text = plots(page)["text loss"]
    assert [title.text for title in text.iter("title")] == ["first: last 0.5", "second: last 2"]
    assert [len(curve.attrib["points"].split()) for curve in text.iter("polyline")][1:] == [4, 3]
    assert len(list(text.iter("path"))) == 1  # where the first went on
    assert "<b>vqa</b>: text" in plots(page) and "image_qa: text" in plots(page) and "picture loss" not in plots(page)
    row = re.search(r"<tr><td><span[^>]*></span>first</td>(.*?)</tr>", page, re.S)
    assert row is not None and re.findall(r"<td>(.*?)</td>", row[1])[:2] == ["4", "1.62"]
    assert (
        '<td>attempt-001</td><td>2</td><td class="text">the start</td><td class="text">rank 1 was killed &lt;at' in page
    )
    assert '<td>seed</td><td class="text" title="0">0</td><td class="text" title="7">7</td>' in page
    assert page.count("<td>steps</td>") == 1 + 2  # it differs; and each run's own table
    assert '<td>batch</td><td class="text" title' not in page  # it does not differ
    assert "100.00 % <span" in page
    assert "<b>vqa</b>" not in page and "und<i>" not in page  # names are escaped everywhere


def test_one_run_is_compared_with_nothing(tmp_path: Path) -> None:
    page = report.write(tmp_path / "page.html", [trained(tmp_path / "only", [2.0, 1.0])]).read_text()
    assert "What differs" not in page and 'class="legend"' not in page
    assert "last 1" in page and len(list(plots(page)["text loss"].iter("g"))) == 1


def test_runs_of_one_name_are_told_apart_by_where_they_lie(tmp_path: Path) -> None:
    folders = [tmp_path / "a" / "trainings" / "x", tmp_path / "b" / "trainings" / "x", tmp_path / "b" / "y"]
    assert compared.names(folders) == ["a/trainings/x", "b/trainings/x", "y"]
    assert compared.names(folders[1:]) == ["x", "y"]


def test_an_old_journal_is_drawn_without_what_it_does_not_tell(tmp_path: Path) -> None:
    run = by_hand.run(tmp_path / "old", ARCHITECTURE)
    line = {"step": 1, "losses": {"text": 2.0}, "fed": {}, "rate": 0.1, "norm": 1.0, "attempt": 1}
    (run / "metrics.jsonl").write_text(json.dumps({**line, "seconds": 1.0, "data_seconds": 0.5}) + "\n")
    drawn = plots(report.write(tmp_path / "page.html", [run]).read_text())
    assert {"text loss", "share of it waiting for data"} <= drawn.keys()
    assert "padding of a step" not in drawn and "seconds of a save" not in drawn
    (run / "metrics.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(ValueError, match=r"a file in .*old is damaged \(KeyError: 'metrics.jsonl lacks attempt"):
        report.write(tmp_path / "page.html", [run])


def test_answers_to_a_prompt_stand_in_a_row_by_step(tmp_path: Path) -> None:
    run = trained(tmp_path / "run", [2.0, 1.0])
    Image.new("RGB", (300, 200), "red").save(tmp_path / "elsewhere.png")
    for step in range(10, 250, 10):
        folder = watched.folder(run, step)
        folder.mkdir(parents=True)
        Image.new("RGB", (300, 200), (step, 0, 0)).save(folder / "0000.png")
        parts = [{"picture": "../../../elsewhere.png" if step == 10 else "0000.png"}, {"text": f"<i>said at {step}"}]
        (folder / "samples.jsonl").write_text(json.dumps({"prompt": "<script>", "parts": parts}) + "\n")
    with pytest.raises(OSError, match=r"step-000010/elsewhere\.png"):  # whatever a line says, nothing from elsewhere
        report.write(tmp_path / "page.html", [run])
    (watched.folder(run, 10) / "elsewhere.png").write_bytes((watched.folder(run, 20) / "0000.png").read_bytes())
    page = report.write(tmp_path / "page.html", [run]).read_text()
    steps = [int(step) for step in re.findall(r'<span class="role">step (\d+)</span><img', page)]
    assert (steps[0], steps[-1], len(steps)) == (10, 240, 10) and steps == sorted(steps)
    assert "&lt;i&gt;said at 240" in page and '<div class="prompt">&lt;script&gt;</div>' in page
    assert max(len(uri) for uri in re.findall(r'src="data:image/jpeg;base64,([^"]*)"', page)) < 4000  # small


def test_recipes_differ_where_their_fields_do_and_no_deeper(tmp_path: Path) -> None:
    first = compared.read(0, "first", trained(tmp_path / "first", [1.0]))
    other = replace(ARCHITECTURE, coder=LinearCoder(patch=8), backbone=replace(ARCHITECTURE.backbone, ffn=64))
    second = compared.read(1, "second", trained(tmp_path / "second", [1.0], architecture=other))
    rows = compared.differences([first, second], report.in_words)["rows"]
    assert {row["path"]: [cell["text"] for cell in row["cells"]] for row in rows} == {
        "architecture.backbone.ffn": ["48", "64"],
        "architecture.coder.patch": ["4", "8"],
    }
    coder = UNetCoder(channels=(8,), attends=(False,), layers_per_block=1, head_width=8, groups=4)  # of another kind
    third = compared.read(
        2, "third", trained(tmp_path / "third", [1.0], architecture=replace(ARCHITECTURE, coder=coder))
    )
    rows = compared.differences([first, third], report.in_words)["rows"]
    assert [row["path"] for row in rows] == ["architecture.coder"]
    assert rows[0]["cells"][0]["text"] == "LinearCoder (patch 4)"
    assert rows[0]["cells"][1]["whole"].startswith("UNetCoder (attends False, channels 8, ")


def test_a_plot_keeps_every_point_in_its_box() -> None:
    series = {0: {step: 100.0 / step for step in range(1, 2001)}, 1: {5: float("nan"), 6: 0.5, 7: float("inf")}}
    made = curves.plot("loss", series, width=300, height=150)
    assert made is not None and made.logarithmic
    left, top, right, bottom = made.box
    falling, single = made.lines
    points = [tuple(map(float, point.split(","))) for point in falling.points.split()]
    assert 100 < len(points) <= 151 and all(left <= x <= right and top <= y <= bottom for x, y in points)
    assert [y for _, y in points] == sorted(y for _, y in points)  # it falls, and y grows downwards
    assert falling.last == "0.05" and falling.band
    assert single.dot is not None and single.last == "0.5"
    assert made.across[0].text == "1" and made.across[-1].text == "2,000"
    assert all(top <= tick.place <= bottom for tick in made.up) and len(made.up) >= 3


def test_a_plot_of_nothing_is_no_plot() -> None:
    assert curves.plot("loss", {0: {}, 1: {3: float("nan")}}, width=300, height=150) is None


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (1234.5, "1,230"), (0.00123456, "0.00123"), (1.5e-5, "1.5e-5"), (123456.0, "1.23e5"), (-2.0, "-2")],
)
def test_numbers_are_told_in_three_digits(value: float, text: str) -> None:
    assert curves.written(value) == text


def test_lines_that_fall_together_are_told_apart() -> None:
    same = {step: 1.0 / step for step in range(1, 9)}
    made = curves.plot("loss", {0: same, 1: same, 2: {1: 1.0, 8: 0.5}, 3: same}, width=300, height=150)
    assert made is not None and [line.over for line in made.lines] == [0, 1, 0, 2]


def test_a_flat_line_has_an_axis() -> None:
    made = curves.plot("rate", {0: {1: 0.5, 2: 0.5}}, width=300, height=150)
    assert made is not None and not made.logarithmic and made.up
