"""Recipes: Python functions that return values. Find one, change a field of it, describe it as JSON, name it by a hash.

A recipe is `module:function` (modules of pipelines/recipes, or any importable one) or `path/to/file.py:function`; one
with parameters takes them by name, as literals: `mixtures:unlock(generation=5000, with_understanding=False)`.
Nothing here imports torch or ray: `list` and `show` answer in a fraction of a second.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import hashlib
import importlib
import importlib.util
import inspect
import json
import math
import pkgutil
import re
import sys
import traceback
import types
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pipelines import recipes

_OUTSIDE = "interlace_recipe_"  # prefix of modules loaded from a file, so that they shadow nothing
_LONGEST_ARGUMENTS = 1000  # characters: literals that a person typed
_BRIEF = 80  # letters of a value in an error
_CALL = re.compile(r"(\w+)\((.*)\)", re.DOTALL)


def load(name: str) -> Any:
    """The value that a recipe function returns.

    Raises:
        ValueError: no such module, file, function or parameter (the nearest are named), or a value of another type.
    """
    module_name, function_name, arguments = split(name)
    module = _file(Path(module_name)) if module_name.endswith(".py") else _module(module_name)
    functions = _functions(module)
    if function_name not in functions:
        raise ValueError(f"recipe {name!r}: {module_name} has no {function_name}{nearest(function_name, functions)}")
    function = functions[function_name]
    if inspect.iscoroutinefunction(function):
        raise ValueError(f"recipe {name!r}: a recipe is a plain function")
    given = _arguments(function, arguments, f"recipe {name!r}")
    try:
        return function(**given)
    except (Exception, SystemExit) as error:
        raise ValueError(f"recipe {name!r} fails: {type(error).__name__}: {error}") from error


def split(name: str) -> tuple[str, str, str]:
    """A recipe's name as its module or file, its function, and the text of its arguments.

    Raises:
        ValueError: it names no function, or its brackets do not close.
    """
    called = re.fullmatch(r"(.*?):(\w+)\((.*)\)", name, re.DOTALL)
    if called:
        return called[1], called[2], called[3]
    module_name, colon, function_name = name.rpartition(":")
    if not colon or "(" in function_name:
        raise ValueError(
            f"recipe {name!r}: write module:function or path/to/file.py:function, with brackets if it takes something, "
            "function(name=value); `interlace list` shows them"
        )
    return module_name, function_name, ""


def listing() -> Iterator[tuple[str, str]]:
    """(name, first line of its docstring) of every recipe of the house."""
    for info in sorted(pkgutil.iter_modules(recipes.__path__), key=lambda found: found.name):
        module = importlib.import_module(f"{recipes.__name__}.{info.name}")
        for name, function in _functions(module).items():
            lines = (inspect.getdoc(function) or "").splitlines()
            yield f"{info.name}:{name}", lines[0] if lines else ""


def outside_modules() -> list[types.ModuleType]:
    """Modules loaded from recipe files: workers elsewhere cannot import them by name."""
    return [module for name, module in sys.modules.items() if name.startswith(_OUTSIDE)]


def describe(value: Any) -> Any:
    """A recipe value as JSON: every dataclass with its class, its version and all its fields."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        kind = type(value)
        fields = {field.name: describe(getattr(value, field.name)) for field in dataclasses.fields(value)}
        version = getattr(kind, "version", None)
        named = {"is": f"{kind.__module__.removeprefix(_OUTSIDE)}:{kind.__qualname__}"}
        return {**named, **({} if version is None else {"version": version}), **fields}
    if isinstance(value, tuple):
        return [describe(item) for item in value]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    raise ValueError(f"{value!r} in a recipe: use dataclasses, tuples, text, numbers and None")


def rebuild(description: Any, file: str | None = None) -> Any:
    """The value that `describe` described: frozen dataclasses, tuples and plain values, whatever the description says.

    Args:
        file: of the recipe, when it lies outside the house; it is run, its classes are found there.
    Raises:
        ValueError: no description, a class that is gone, is no frozen dataclass, has another version or other fields.
    """
    if file is not None:
        _file(Path(file))
    if isinstance(description, list):
        return tuple(rebuild(item) for item in description)
    if not isinstance(description, dict):
        return description
    if not isinstance(description.get("is"), str):
        raise ValueError(f"{str(description)[:80]!r} describes no value of a recipe: restore the file it stands in")
    module_name, _, class_name = description["is"].partition(":")
    module = sys.modules.get(_OUTSIDE + module_name)
    try:
        kind = getattr(module or importlib.import_module(module_name), class_name)
        if not (isinstance(kind, type) and dataclasses.is_dataclass(kind)):  # a description runs nothing else
            raise ValueError("it is no dataclass, and a recipe holds nothing else")
        fields = {name: rebuild(item) for name, item in description.items() if name not in ("is", "version")}
        version = getattr(kind, "version", None)
        if version != description.get("version"):
            raise ValueError(f"it was version {description.get('version')}, this code has {version}")
        return kind(**fields)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{description['is']} cannot be made again: {error}; use the code of its code.txt") from None


def key(description: Any) -> str:
    """The hash of a description, 64 hex digits; folders carry the first 12."""
    canonical = json.dumps(description, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


def override(value: Any, assignments: list[str]) -> Any:
    """The value with fields changed by `path.to.field=value`; a tuple's items are named by number or by their `name`.

    Raises:
        ValueError: a path or a value that does not fit; the nearest names are given.
    """
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals:
            raise ValueError(f"--set {assignment}: write path.to.field=value")
        value = _replaced(value, path.split("."), text, assignment)
    return value


def nearest(name: str, known: Any) -> str:
    """A hint with the nearest of the known names, for the end of an error."""
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    if close:
        return f"; did you mean {' or '.join(close)}?"
    names = list(known)
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    return f"; it has {', '.join(names[:20]) or 'nothing'}{more}"


def _module(name: str) -> types.ModuleType:
    house = [info.name for info in pkgutil.iter_modules(recipes.__path__)]
    full = f"{recipes.__name__}.{name}" if name in house else name
    try:
        found = importlib.util.find_spec(full)
    except (ImportError, ValueError):
        found = None
    if found is None or not name:
        raise ValueError(f"recipe module {name!r} is not there{nearest(name, house)}")
    return importlib.import_module(full)


def _file(path: Path) -> types.ModuleType:
    path = path.expanduser().resolve()
    if not path.is_file():
        raise ValueError(f"recipe file {path} is not there")
    name = _OUTSIDE + path.stem
    if name in sys.modules and sys.modules[name].__file__ == str(path):
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))  # a recipe may import the files beside it
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # a user's file: whatever it raises is shown as one line with its place
        del sys.modules[name]
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        place = f" line {lines[-1]}" if lines else ""
        raise ValueError(f"recipe file {path}{place} fails: {type(error).__name__}: {error}") from error
    return module


def _functions(module: types.ModuleType) -> dict[str, Callable[[], Any]]:
    return {
        name: value
        for name, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == module.__name__ and not name.startswith("_")
    }


def _arguments(function: Callable[..., Any], text: str, told: str) -> dict[str, Any]:
    """The literals in the brackets of a call, each of its parameter's annotated type. Nothing in them is run.

    Args:
        function: a function or a dataclass. told: how an error begins.
    """
    if len(text) > _LONGEST_ARGUMENTS:
        raise ValueError(f"{told[:60]}...: {len(text)} characters in its brackets, over {_LONGEST_ARGUMENTS}")
    parameters = inspect.signature(function).parameters
    if any(p.kind not in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) for p in parameters.values()):
        raise ValueError(f"{told}: a recipe is a plain function whose parameters have names")
    source = f"call({text})"
    try:
        call = ast.parse(source, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ValueError(f"{told}: the brackets do not read; write name=value, ...") from None
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.args:
        raise ValueError(f"{told}: name what you give: {', '.join(f'{name}=...' for name in parameters) or 'nothing'}")
    try:
        annotations = typing.get_type_hints(function)
    except (NameError, AttributeError, TypeError, SyntaxError) as error:  # text in a user's file
        raise ValueError(f"{told}: its annotations do not read ({type(error).__name__}: {error})") from None
    given: dict[str, Any] = {}
    for keyword in call.keywords:
        if keyword.arg is None or keyword.arg not in parameters:
            raise ValueError(f"{told}: there is no parameter {keyword.arg}{nearest(keyword.arg or '', parameters)}")
        if keyword.arg in given:
            raise ValueError(f"{told}: {keyword.arg} is given twice")
        annotation = annotations.get(keyword.arg, str | int | float | bool | None)
        try:
            given[keyword.arg] = _fitted(annotation, ast.literal_eval(keyword.value))
        except (ValueError, TypeError, OverflowError, RecursionError, MemoryError):
            wrong = f"{keyword.arg}={ast.get_source_segment(source, keyword.value)}"
            raise ValueError(f"{told}: {wrong[:60]} is not {_named(annotation)}, written as a literal") from None
    missing = [p.name for p in parameters.values() if p.default is p.empty and p.name not in given]
    if missing:
        raise ValueError(f"{told} needs {' and '.join(missing)}: write {function.__name__}({missing[0]}=...)")
    return given


def _fitted(annotation: Any, value: Any) -> Any:
    """A literal as a value of the annotated type; ValueError where it is none."""
    for option in typing.get_args(annotation) if _is_union(annotation) else (annotation,):
        inside = typing.get_args(option)
        if typing.get_origin(option) is typing.Literal:
            if any(type(choice) is type(value) and choice == value for choice in inside):
                return value
        elif typing.get_origin(option) is tuple and isinstance(value, tuple):
            kinds = [inside[0]] * len(value) if inside[-1] is ... else inside
            if len(kinds) == len(value):
                return tuple(_fitted(kind, item) for kind, item in zip(kinds, value, strict=True))
        elif option is float and isinstance(value, int | float) and not isinstance(value, bool):
            if math.isfinite(value):
                return float(value)
        elif option in (int, str, bool, type(None)) and type(value) is option:
            return value
    raise ValueError


def _replaced(value: Any, path: list[str], text: str, assignment: str) -> Any:
    name, rest = path[0], path[1:]
    if isinstance(value, tuple):
        names = [str(getattr(item, "name", place)) for place, item in enumerate(value)]
        if name not in names and not (name.isascii() and name.isdigit() and int(name) < len(value)):
            raise ValueError(f"--set {assignment}: no item {name!r}{nearest(name, names)}")
        place = names.index(name) if name in names else int(name)
        if not rest:
            raise ValueError(f"--set {assignment}: {name} is a whole item; name one of its fields")
        return (*value[:place], _replaced(value[place], rest, text, assignment), *value[place + 1 :])
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        raise ValueError(f"--set {assignment}: {name!r} is looked for in {_brief(value)}, which has no fields")
    names = [field.name for field in dataclasses.fields(value)]
    if name not in names:
        raise ValueError(f"--set {assignment}: {type(value).__name__} has no field {name!r}{nearest(name, names)}")
    current = getattr(value, name)
    if rest:
        return dataclasses.replace(value, **{name: _replaced(current, rest, text, assignment)})
    annotation = typing.get_type_hints(type(value))[name]
    try:
        return dataclasses.replace(value, **{name: _typed(annotation, text, assignment)})
    except ValueError as error:
        raise ValueError(f"{error}; {name} is {_brief(current)} now{_inside(assignment, current)}") from None


def _typed(annotation: Any, text: str, assignment: str) -> Any:
    """Text as a value of the annotated type."""
    options = typing.get_args(annotation) if _is_union(annotation) else (annotation,)
    for option in options:
        if option is type(None) and text.lower() in ("none", "null"):
            return None
        if typing.get_origin(option) is typing.Literal:
            for choice in typing.get_args(option):
                if str(choice) == text:
                    return choice
        elif option is bool and text.lower() in ("true", "false"):
            return text.lower() == "true"
        elif option in (int, float):
            try:
                number = option(text)
            except ValueError:
                continue
            if math.isfinite(number):
                return number
        elif option is str:
            return text
        elif typing.get_origin(option) is tuple:
            inside = typing.get_args(option)
            pieces = [piece for piece in text.strip("()[] ").split(",") if piece.strip()]
            kinds = [inside[0]] * len(pieces) if inside[-1] is ... else list(inside)
            if len(kinds) == len(pieces) and all(kind in (int, float, str, bool) for kind in kinds):
                return tuple(_typed(kind, piece.strip(), assignment) for kind, piece in zip(kinds, pieces, strict=True))
        elif dataclasses.is_dataclass(option) and (made := _CALL.fullmatch(text)) and made[1] == option.__name__:
            return option(**_arguments(option, made[2], f"--set {assignment}"))
    shown = text if len(text) <= _BRIEF else f"{text[:_BRIEF]}..."
    raise ValueError(f"--set {assignment[:120]}: {shown!r} is not {_named(annotation)}")


def _brief(value: Any) -> str:
    """A value for the end of an error: a plain one as it is written, of a dataclass its kind."""
    told = repr(value)
    if len(told) <= _BRIEF:
        return told
    if dataclasses.is_dataclass(value):
        return f"of class {type(value).__name__}"
    if isinstance(value, tuple) and any(dataclasses.is_dataclass(item) for item in value):
        return f"{len(value)} x {type(value[0]).__name__}"
    return f"{told[:_BRIEF]}..."


def _inside(assignment: str, value: Any) -> str:
    """How to change one thing of a value that has fields or items, for the end of an error."""
    path = assignment.partition("=")[0]
    if isinstance(value, tuple) and value and dataclasses.is_dataclass(value[0]):
        name, value = getattr(value[0], "name", 0), value[0]
        path = f"{path}.{name}"
    if not dataclasses.is_dataclass(value):
        return ""
    names = [field.name for field in dataclasses.fields(value)]
    return f": change a field of it, as --set {path}.{names[-1]}=...; it has {', '.join(names)}"


def _named(annotation: Any) -> str:
    """An annotation as a person writes it."""
    if _is_union(annotation):
        return " | ".join(_named(option) for option in typing.get_args(annotation))
    if annotation is Any:
        return "a value that the field takes"
    if typing.get_origin(annotation) is typing.Literal:
        return f"one of {', '.join(map(repr, typing.get_args(annotation)))}"
    if isinstance(annotation, type):
        return "None" if annotation is type(None) else annotation.__name__
    return str(annotation).replace("typing.", "")


def _is_union(annotation: Any) -> bool:
    return typing.get_origin(annotation) in (typing.Union, types.UnionType)
