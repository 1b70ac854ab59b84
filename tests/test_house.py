"""The house holds: who may import whom, what is light, what the README promises, what the recipes are."""

from __future__ import annotations

import ast
import importlib.metadata
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines import recipe
from pipelines.grammar import parser

HOUSE = Path(__file__).resolve().parent.parent
ROOMS = ("dataflow", "models", "clusters", "pipelines")

# What a room never imports (DESIGN section 3). To clusters Ray is an executable, and an API over HTTP.
NEVER = {
    "dataflow": {"torch", "transformers", "diffusers", "ray", "deepspeed", "models", "clusters", "pipelines"},
    "models": {"ray", "deepspeed", "dataflow", "clusters", "pipelines"},
    "clusters": {"torch", "ray", "deepspeed", "transformers", "dataflow", "models", "pipelines"},
    "pipelines": {"tests"},
}
LIGHT = ("models/configs.py", "models/layout.py", "models/parts.py", "models/views.py")  # no torch at all
HEAVY = {"torch", "ray", "deepspeed", "transformers", "diffusers"}


def _files(room: str) -> Iterator[Path]:
    yield from sorted((HOUSE / room).rglob("*.py"))


def _imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module.partition(".")[0])
    return names


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_what_it_may(room: str) -> None:
    broken = {str(path): sorted(_imports(path) & NEVER[room]) for path in _files(room) if _imports(path) & NEVER[room]}
    assert not broken


@pytest.mark.parametrize("file", LIGHT)
def test_configs_and_layouts_are_free_of_torch(file: str) -> None:
    assert not _imports(HOUSE / file) & HEAVY


def test_the_command_and_every_recipe_load_without_torch_and_ray() -> None:
    code = (
        "import sys\n"
        "from pipelines import recipe\n"
        "from pipelines.grammar import parser\n"
        "parser(); [recipe.describe(recipe.load(name)) for name, _ in recipe.listing()]\n"
        f"print(sorted({HEAVY!r} & set(sys.modules)))"
    )
    said = subprocess.run([sys.executable, "-c", code], cwd=HOUSE, capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"


def test_no_installed_distribution_takes_our_top_level_names() -> None:
    owners = importlib.metadata.packages_distributions()
    taken = {room: owners[room] for room in ROOMS if set(owners.get(room, ["interlace"])) != {"interlace"}}
    assert not taken


def test_pyproject_lists_exactly_the_packages_that_exist() -> None:
    text = (HOUSE / "pyproject.toml").read_text()
    listed = set(re.findall(r'^ {4}"([a-z.]+)",$', text.partition("[tool.setuptools]")[2].partition("]")[0], re.M))
    found = {
        ".".join(path.parent.relative_to(HOUSE).parts) for room in ROOMS for path in (HOUSE / room).rglob("__init__.py")
    }
    assert listed == found


@pytest.mark.parametrize("name", [name for name, _ in recipe.listing()])
def test_recipes_are_what_they_were(name: str) -> None:
    """After a change that is meant: interlace show NAME > tests/golden/NAME.json (a dash for the colon)."""
    golden = HOUSE / "tests" / "golden" / f"{name.replace(':', '-')}.json"
    stored = json.loads(golden.read_text())
    assert recipe.describe(recipe.load(name)) == stored["value"]


@pytest.mark.parametrize("name", [name for name, _ in recipe.listing()])
def test_recipes_survive_the_way_through_json(name: str) -> None:
    value = recipe.load(name)
    assert recipe.rebuild(json.loads(json.dumps(recipe.describe(value)))) == value


def test_golden_files_belong_to_recipes() -> None:
    stored = {path.stem for path in (HOUSE / "tests" / "golden").glob("*.json")}
    assert stored == {name.replace(":", "-") for name, _ in recipe.listing()}


def test_every_recipe_has_a_page_of_a_lab_book() -> None:
    for name, _ in recipe.listing():
        module, _, function = name.partition(":")
        text = (HOUSE / "pipelines" / "recipes" / f"{module}.py").read_text()
        page = text.partition(f"def {function}(")[2].partition('"""')[2].partition('"""')[0]
        for heading in ("Run:", "Cost:", "Expect:"):
            assert heading in page, f"{name} lacks {heading}"


def _readme_blocks() -> Iterator[str]:
    yield from re.findall(r"^```console\n(.*?)^```", (HOUSE / "README.md").read_text(), re.M | re.S)


def test_every_command_in_the_readme_parses() -> None:
    commands = [line[2:] for block in _readme_blocks() for line in block.splitlines() if line.startswith("$ ")]
    assert commands
    targets = set(re.findall(r"^([a-z-]+):", (HOUSE / "Makefile").read_text(), re.M))
    for command in commands:
        words = shlex.split(command.partition("  #")[0])
        if words[0] == "make":
            assert set(words[1:]) <= targets, command
        elif words[0] == "interlace":
            options = parser().parse_args(words[1:])
            named = getattr(options, "recipe", None)
            if named and not named.partition(":")[0].endswith(".py"):
                recipe.override(recipe.load(named), options.assignments)
        else:
            assert words[0] in ("cd", "python", "sha256sum"), command


def test_the_file_list_of_the_readme_is_the_tree() -> None:
    listing = (HOUSE / "README.md").read_text().partition("<!-- files -->")[2].partition("<!-- /files -->")[0]
    listed = dict(re.findall(r"^\| `([^`]+\.py)` \| (.*) \|$", listing, re.M))
    found = {
        path.relative_to(HOUSE).as_posix(): (ast.get_docstring(ast.parse(path.read_text())) or "").splitlines()[0]
        for room in ROOMS
        for path in _files(room)
        if path.name != "__init__.py"
    }
    assert listed == found
