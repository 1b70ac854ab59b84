"""Fixtures of the data side's tests: upstream folders made by hand, corpora built from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import here
import pytest
from upstream import Build

from dataflow.index import BuiltCorpus
from dataflow.roots import Roots


@pytest.fixture
def build(tmp_path: Path) -> Build:
    """Build a corpus from the folders under tmp_path/data, all in this process; work files are swept away."""

    def build(source: Any, **how: Any) -> BuiltCorpus:
        roots = how.pop("roots", None) or Roots(base=tmp_path / "data")
        return here.build(source, roots, how.pop("folder", tmp_path / "built" / source.name), **how)

    return build
