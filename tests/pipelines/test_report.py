"""The report page: what a run was asked to do and how it was judged, in words."""

from __future__ import annotations

import json
from pathlib import Path

import by_hand

from models.configs import MetaMorph
from models.parts import Llama, Siglip
from pipelines import report

MORPH = MetaMorph(
    backbone=Llama(width=16, layers=1, heads=2, kv_heads=1, ffn=16, max_positions=64),
    vision=Siglip(picture=16, patch=8, width=16, layers=1, heads=2, ffn=16),
    grid=2,
)


def test_a_run_is_told_with_its_settings_and_its_last_evaluation(tmp_path: Path) -> None:
    run = by_hand.run(tmp_path / "trainings" / "morph", MORPH)
    page = report.write(tmp_path / "page.html", [run]).read_text()
    assert '<td>recipe</td><td class="text">by_hand:made</td>' in page
    assert '<td>architecture</td><td class="text">MetaMorph</td>' in page
    assert "Siglip (ffn 16, heads 2, layers 1, patch 8, picture 16, seed 0, width 16)" in page
    assert '<td>batch</td><td class="text">1</td>' in page and "learning rate 0.1" in page
    assert "no training saw" not in page
    judged = {"records": 4, "losses": {"text": 1.25, "picture": None}, "right": 1, "asked": 2}
    (run / "evaluation.json").write_text(json.dumps({"step": 1, "tasks": {"image_qa": judged}}))
    page = report.write(tmp_path / "page.html", [run]).read_text()
    assert "after step 1" in page
    assert '<td>image_qa</td><td>4</td><td class="text">text 1.2500</td><td class="text">1 of 2</td>' in page


def test_values_are_told_in_words_without_what_is_empty() -> None:
    clip = {"is": "models.parts:OpenClip", "model": "ViT-B-32", "pretrained": "x", "revision": None}
    rule = {"is": "dataflow.thresholds:Above", "version": 1, "measure": clip, "column": "score", "at_least": 0.28}
    told = report.in_words({**rule, "against": ["mmbench", "mmmu"]})
    assert told == (
        "Above (measure OpenClip (model ViT-B-32, pretrained x), column score, at least 0.28, against mmbench, mmmu)"
    )
