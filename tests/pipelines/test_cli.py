"""The command as its user meets it: every mistake is one line with a cure and exit code 2, every answer has a code."""

from __future__ import annotations

import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from webdataset import compat

from dataflow import mini
from pipelines.grammar import parser
from pipelines.step import HOUSE

Interlace = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def built(world: Path, tmp_path_factory: pytest.TempPathFactory, interlace: Interlace) -> Path:
    """A root with the corpora of the miniature mixture."""
    root = tmp_path_factory.mktemp("root")
    interlace("build", "mixtures:mini", "--data", world, "--root", root)
    return root


def test_list_names_every_recipe_with_its_line(interlace: Interlace) -> None:
    lines = interlace("list").stdout.splitlines()
    assert any(line.startswith("metamorph:tiny ") and "MetaMorph in miniature" in line for line in lines)


def test_show_prints_json_with_recipe_keys(interlace: Interlace) -> None:
    shown = json.loads(interlace("show", "mixtures:mini").stdout)
    assert set(shown["recipe_keys"]) == set(mini.SOURCES)
    changed = json.loads(interlace("show", "corpora:cambrian", "--set", "rows_per_shard=7").stdout)
    assert changed["value"]["rows_per_shard"] == 7


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["build", "corpora:cambrain", "--data", "."], "did you mean cambrian"),
        (["build", "corpora:cambrian", "--data", "/no/such/folder"], "no folder /no/such/folder"),
        (["build", "corpora:cambrian"], "where is cambrian? give --data"),
        (["build", "corpora:cambrian", "--data", "."], "no folder"),
        (["build", "corpora:cambrian", "--data", ".", "--set", "rows_per_shrd=1"], "did you mean rows_per_shard"),
        (["build", "corpora:cambrian", "--data", "WORLD", "--set", "rows_per_shard=0"], "use 1 to 10000"),
        (["build", "corpora:cambrian", "--workers", "0"], "must be a whole number from 1"),
        (["build", "corpora:cambrian", "--data", "WORLD", "--ray-address", "127.0.0.1:1"], "no cluster answers"),
        (["build", "corpora:cambrian", "--data", "WORLD", "--ray-address", "moon"], "write HOST:PORT of a running"),
        (["train", "metamorph:tiny", "--root", "EMPTY"], "cambrian is not built under EMPTY: run interlace build"),
        (["train", "corpora:cambrian"], "corpora:cambrian is a Corpus, train wants a Training"),
        (["verify", "EMPTY"], "no manifest.json"),
        (["sample", "EMPTY", "a cat"], "is no run"),
        (["sample", "EMPTY"], "wants a PROMPT or --prompts FILE"),
        (["report", "EMPTY"], "neither a built corpus nor a run"),
        (["build", "corpora:cambrian", "--data", "WORLD", "--dry-run"], "give --cluster too"),
        (["sample", "EMPTY", "--prompts", "EMPTY/none.txt"], "argument --prompts: no file"),
        (["check", "json:dumps"], "a recipe is a plain function whose parameters have names"),
        (["bake", "bread"], "invalid choice: 'bake'"),
        ([], "required: COMMAND"),
    ],
)
def test_a_mistake_is_one_line_and_exit_2(
    words: list[str], told: str, world: Path, tmp_path: Path, interlace: Interlace
) -> None:
    said = interlace(
        *(word.replace("EMPTY", str(tmp_path)).replace("WORLD", str(world)) for word in words),
        cwd=tmp_path,
        expect=2,
    )
    assert said.stderr.count("\n") == 1, said.stderr
    assert told.replace("EMPTY", str(tmp_path)) in said.stderr
    assert "Traceback" not in said.stderr


def test_an_address_where_something_else_answers_is_known_at_once(
    world: Path, tmp_path: Path, interlace: Interlace
) -> None:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    words = ("build", "corpora:metaclip", "--data", world, "--root", tmp_path)
    for scheme in ("", "ray://"):
        said = interlace(*words, "--ray-address", f"{scheme}127.0.0.1:{server.server_port}", expect=2).stderr
        assert "what answers there is no Ray" in said and said.count("\n") == 1
    server.shutdown()


@pytest.mark.parametrize(
    ("verb", "told"),
    [
        ("sample", ["(default: 2.0)", "(default: 50)", "(default: 128)", "(default: 0)", "(default: runs/)"]),
        ("report", ["(default: report.html in this folder)", "over one that is there"]),
        ("look", ["(default: look.html in this folder)", "(default: 0)"]),
        ("build", ["(default: 2)", "(default: a private local one)"]),
        ("check", ["(default: 1000)"]),
    ],
)
def test_help_tells_what_is_taken_when_nothing_is_said(
    verb: str, told: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parser().parse_args([verb, "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert all(words in said for words in told), said
    assert "None" not in said and "[]" not in said


def test_a_file_that_hides_the_house_from_workers_is_named(world: Path, tmp_path: Path, interlace: Interlace) -> None:
    (tmp_path / "dataflow.py").write_text("x = 1")
    command = f"import os, sys; os.chdir({str(tmp_path)!r}); from pipelines.__main__ import main; main(sys.argv[1:])"
    words = ["build", "corpora:metaclip", "--data", str(world), "--root", str(tmp_path / "out")]
    environment = {**os.environ, "PYTHONPATH": str(HOUSE), "PYTHONSAFEPATH": "1"}
    said = subprocess.run(
        [sys.executable, "-c", command, *words], env=environment, capture_output=True, text=True, check=False
    )
    assert said.returncode == 2
    assert f"{tmp_path / 'dataflow.py'} hides Interlace's own dataflow" in said.stderr


def test_check_reads_rows_and_tells_what_would_be_dropped(world: Path, tmp_path: Path, interlace: Interlace) -> None:
    said = interlace("check", "mixtures:mini", "--data", world, cwd=tmp_path).stdout
    lines = re.findall(
        r"^(\w+): (\d+) rows read: (\d+) kept, (\d+) filtered, (\d+) corrupt, (\d+) missing$", said, re.M
    )
    assert {name for name, *_ in lines} == set(mini.SOURCES)
    for name, *counts in lines:
        read, *outcomes = map(int, counts)
        assert read == sum(outcomes), name
    assert "cambrian: 300 rows read: 296 kept, 0 filtered, 3 corrupt, 1 missing" in said
    assert "1 picture but 2 <image> in the text  (jsons/Cambrian7M_withsystemprompt.jsonl row 51)" in said
    assert "18 of 18 sources: " in said
    assert "from a part of the input" not in said
    assert not list(tmp_path.iterdir())


def test_check_tells_what_a_build_needs_from_some_of_the_rows(
    built: Path, world: Path, tmp_path: Path, interlace: Interlace
) -> None:
    said = interlace("check", "corpora:cambrian", "--data", world, "--rows", "100", cwd=tmp_path).stdout
    assert "from a part of the input (--rows reads more): about" in said
    (about,) = re.findall(r"about (\d+) rows in all, ([0-9.]+) MB for a build", said)
    assert int(about[0]) == pytest.approx(300, rel=0.1)
    shards = sum(path.stat().st_size for path in (built / "corpora").glob("cambrian-*/*.tar"))
    assert float(about[1]) == pytest.approx(shards / 1e6, rel=0.2)


def test_check_says_no_where_a_build_would_stop_and_goes_on(world: Path, tmp_path: Path, interlace: Interlace) -> None:
    some = tmp_path / "data"
    shutil.copytree(world / "metaclip", some / "metaclip")
    shutil.copytree(world / "instruct_pix2pix", some / "instruct_pix2pix")
    said = interlace("check", "mixtures:mini_pictures", "--data", some, expect=0).stdout
    assert "2 of 2 sources" in said
    limit = "groups.other.members.0.corpus.filters.0.pixels=1000"
    said = interlace("check", "mixtures:mini_pictures", "--data", some, "--set", limit, expect=1).stdout
    assert "a build would stop: 40 of 40 rows lost, over max_dropped=0.1" in said
    shutil.rmtree(some / "instruct_pix2pix")
    gone = interlace("check", "mixtures:mini_pictures", "--data", some, expect=1)
    assert "metaclip: 100 rows read: 100 kept" in gone.stdout
    assert gone.stderr.startswith("instruct_pix2pix: no folder ")


def test_a_corpus_of_foreign_tars_is_adopted_and_exported(world: Path, tmp_path: Path, interlace: Interlace) -> None:
    words = ("build", "corpora:captions", "--data", world, "--root", tmp_path, "--set", "shards=adopted")
    folder = Path(interlace(*words).stdout.splitlines()[-1])
    assert all(path.is_symlink() for path in folder.glob("*.tar"))
    assert "all as built" in interlace("verify", folder).stdout
    interlace("report", folder, "--out", tmp_path / "page.html")
    rows = Path(interlace("export-corpus", folder, "--format", "metamorph-jsonl").stdout.splitlines()[-1])
    exported = [json.loads(line) for line in rows.read_text().splitlines()]
    assert len(exported) == 30
    assert all(Path(path).is_file() for row in exported for path in row["image"])
    refused = interlace(*words[:1], "corpora:cambrian", *words[2:], expect=2)
    assert "only tars are adopted; build this corpus without shards=adopted" in refused.stderr


def test_verify_passes_and_then_names_the_shard_of_one_changed_byte(
    built: Path, tmp_path: Path, interlace: Interlace
) -> None:
    corpus = tmp_path / "copy"
    shutil.copytree(next((built / "corpora").glob("cambrian-*")), corpus)
    assert "all as built" in interlace("verify", corpus).stdout
    shard = corpus / "00001.tar"
    data = bytearray(shard.read_bytes())
    data[5000] ^= 1
    shard.write_bytes(data)
    said = interlace("verify", corpus, expect=1).stdout
    assert f"{shard} is not the bytes that were built" in said
    assert "1 wrong" in said


def test_webdataset_opens_what_was_built(built: Path) -> None:
    shards = sorted(str(path) for path in (built / "corpora").glob("*/*.tar"))
    samples = list(compat.WebDataset(shards, shardshuffle=False))
    manifests = [json.loads(path.read_bytes()) for path in (built / "corpora").glob("*/manifest.json")]
    assert len(manifests) == len(mini.SOURCES)
    assert len(samples) == sum(manifest["counts"]["kept"] for manifest in manifests)
    assert all("json" in sample for sample in samples)


def test_any_number_of_workers_writes_the_same_bytes(
    built: Path, world: Path, tmp_path: Path, interlace: Interlace
) -> None:
    interlace("build", "mixtures:mini", "--data", world, "--root", tmp_path, "--workers", "1")
    for folder in sorted((built / "corpora").glob("*-*")):
        other = tmp_path / "corpora" / folder.name
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            assert (other / path.relative_to(folder)).read_bytes() == path.read_bytes(), path


def test_data_may_lie_apart_and_paths_are_taken_from_where_one_stands(
    world: Path, tmp_path: Path, interlace: Interlace
) -> None:
    (tmp_path / "elsewhere").symlink_to(world / "metaclip")
    words = ("build", "corpora:metaclip", "--data", "metaclip=elsewhere", "--root", "out")
    said = interlace(*words, cwd=tmp_path)
    assert Path(said.stdout.splitlines()[-1]).is_relative_to(tmp_path / "out" / "corpora")


def test_a_full_line_of_metamorph_trains_samples_and_reports(built: Path, tmp_path: Path, interlace: Interlace) -> None:
    """Two steps each: the wiring, not the learning."""
    short = ("--set", "steps=2", "--set", "batch=4", "--set", "execution.micro_batch=2")
    painting = interlace("train", "metamorph:tiny_visualizer", "--root", built, *short).stdout.splitlines()[-1]
    speaking = interlace(
        "train", "metamorph:tiny", "--root", built, *short, "--set", "execution.zero_stage=3"
    ).stdout.splitlines()[-1]
    said = interlace("sample", speaking, "a small blue triangle", "--answer", "picture", "--steps", "2").stdout
    picture = Path(said.splitlines()[-1].rpartition(" -> ")[2])
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert f"painting with {Path(painting).name}" in said
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("What is this?\nAnd this?\n")
    words = ("sample", speaking, "--prompts", prompts, "--image", picture, "--answer", "text", "--max-tokens", "4")
    assert len(interlace(*words).stdout.splitlines()) == 2
    refused = interlace("sample", painting, "a cat", expect=2)
    assert "a visualizer answers no prompts" in refused.stderr
    unreadable = tmp_path / "page.png"
    unreadable.write_text("<html>")
    assert "web page" in interlace("sample", speaking, "what?", "--image", unreadable, expect=2).stderr
    page = tmp_path / "page.html"
    interlace("report", speaking, painting, next((built / "corpora").glob("cambrian-*")), "--out", page)
    text = page.read_text()
    assert {"text loss", "picture loss"} <= set(re.findall(r"<svg[^>]*aria-label=\"([^\"]*)\"", text))
    assert "http://" not in text and "https://" not in text
    judged = interlace("evaluate", speaking, "--root", built, "--records", "4", "--questions", "2").stdout
    assert "of 2 answered as the corpus does" in next(line for line in judged.splitlines() if "image_qa" in line)
    assert json.loads(Path(speaking, "evaluation.json").read_text())["step"] == 2
    interlace("look", "metamorph:tiny", "--root", built, "--position", "1", "--out", page, *short)
    assert "metamorph-tiny, position 1" in page.read_text()
    with Path(speaking, "metrics.jsonl").open() as stream:
        fed = [json.loads(line)["fed"] for line in stream]
    assert len(fed) == 2 and all(sum(line.values()) > 4 for line in fed)  # rows hold several records
    audited = interlace("audit", speaking, "--root", built).stdout
    assert f"2 of 2 steps, {sum(sum(line.values()) for line in fed)} records" in audited
    traced = interlace("trace", speaking, "--root", built, "--position", "1").stdout.splitlines()
    assert len(traced) == sum(fed[1].values())
    first = traced[0].split()[2]
    assert "position 1, row 0, slot 0" in interlace("trace", speaking, "--root", built, "--record", first).stdout
    weights = Path(speaking, "checkpoints", "step-000002", "parameters.safetensors")
    damaged = bytearray(weights.read_bytes())
    damaged[-1] ^= 1
    weights.write_bytes(damaged)
    refused = interlace("sample", speaking, "a cat", expect=2)
    assert f"{weights} has sha256" in refused.stderr and "the file is damaged" in refused.stderr


def test_the_installed_command_is_the_module() -> None:
    script = Path(sys.executable).with_name("interlace")
    assert script.is_file(), "the package is not installed: make install"
    said = subprocess.run([script, "list"], capture_output=True, text=True, env=os.environ, check=True)
    assert "metamorph:tiny" in said.stdout
