"""Selections as workflow steps: which records of a built corpus a mixture uses.

<root>/selections/<key>/   key = hash of (rule, corpus root digest)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dataflow import selection
from dataflow.index import BuiltCorpus
from pipelines.recipe import describe, key
from pipelines.step import Place, alone


def select(rule: Any, corpus: BuiltCorpus, place: Place) -> Path:
    """Apply a selection to a corpus, or find it applied; returns its folder."""
    step = {"select": describe(rule), "corpus": corpus.manifest["root_digest"]}
    folder = place.root / "selections" / key(step)[:12]
    if not (folder / "manifest.json").is_file():
        with alone(folder.with_name(f".{folder.name}.lock"), folder.name):
            selection.write(folder, corpus, rule, step=step)
    return folder
