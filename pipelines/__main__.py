"""The command: `interlace VERB ...`. Words become values, relative paths absolute ones, errors one line.

Exit codes: 0 done; 1 it ran and the answer is no (check, verify, status, diff); 2 what was asked cannot be done;
130 interrupted.
Heavy imports happen inside the verbs that need them: `list`, `show` and `--help` load neither torch nor ray.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shlex
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from dataflow import folders, stores
from dataflow.mixture import Mixture
from dataflow.roots import Roots
from pipelines import named, recipe
from pipelines.corpus import Checked, Corpus
from pipelines.step import HOUSE, Place, one_line
from pipelines.training import Training

_LOST = ("filtered", "duplicate", "corrupt", "missing")  # what a ledger says of a candidate that is no record


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run one command and exit with its code."""
    words = sys.argv[1:] if arguments is None else arguments
    options = parser().parse_args(words)
    signal.signal(signal.SIGTERM, _stop)
    try:
        code = options.run(options, words)
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:  # whoever read our output has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        code = 0
    except (ValueError, OSError, RuntimeError, MemoryError) as error:
        notes = "".join(f" ({note})" for note in getattr(error, "__notes__", ()))
        print(f"interlace: {one_line(error)}{notes}", file=sys.stderr)
        code = 2
    except Exception as error:  # noqa: BLE001  whatever a recipe or a damaged file brings about, it is told in a line
        print(f"interlace: {type(error).__name__}: {one_line(error)}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("interlace: interrupted; the same command goes on from here", file=sys.stderr)
        code = 130
    sys.exit(code)


def _stop(number: int, frame: Any) -> NoReturn:
    raise KeyboardInterrupt


def parser() -> argparse.ArgumentParser:
    """The grammar of the command."""
    top = _Parser(prog="interlace", description="Raw corpora in, one exact mixture, trained unified models out.")
    verbs = top.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=_Parser)

    mini = _verb(verbs, "mini", _mini, "the whole line in miniature: corpora, training, pictures, a report")
    _root(mini)
    _workers(mini)
    mini.add_argument("--data-only", type=_path, metavar="DIR", help="only write the miniature corpora to DIR")

    _verb(verbs, "list", _list, "recipes, a line each")

    show = _verb(verbs, "show", _show, "one recipe as JSON, with the recipe keys of its corpora")
    _recipe(show)

    check = _verb(verbs, "check", _check, "read some rows of every source, write nothing: kept, drops and why")
    _recipe(check)
    _data(check)
    _store(check)
    check.add_argument("--rows", type=_count, default=1000, help="input rows to read of each source")

    build = _verb(verbs, "build", _build, "build the corpora of a recipe that are not built yet")
    _recipe(build)
    _data(build)
    _root(build)
    _store(build)
    _workers(build)
    build.add_argument(
        "--rehash", action="store_true", help="build again although index files look the same: pictures changed or came"
    )
    build.add_argument(
        "--explain", action="store_true", help="say what would be built, what linked and why, and build nothing"
    )
    _cluster(build)

    verify = _verb(verbs, "verify", _verify, "hash a built corpus again; exit 1 names what differs")
    _named(verify, "folder", "DIR", "a corpus")
    _root(verify)
    _store(verify)

    status = _verb(verbs, "status", _status, "what lies under a root: finished, running, interrupted, failed and why")
    _root(status)
    _store(status)

    unused = _verb(verbs, "gc", _gc, "what under a root nothing refers to any more; removes it when told to")
    _root(unused)
    _store(unused)
    unused.add_argument("--delete", action="store_true", help="remove it; without this nothing is touched")

    compared = _verb(verbs, "diff", _diff, "compare two corpora or selections; exit 1 when their records differ")
    _named(compared, "before", "A", "a corpus or a selection")
    _named(compared, "after", "B", "another")
    _root(compared)
    _store(compared)
    compared.add_argument(
        "--page", type=_path, metavar="FILE", help="write it as a page too, with examples, over one that is there"
    )

    export = _verb(verbs, "export-corpus", _export, "write a built corpus as the rows that another trainer reads")
    _named(export, "folder", "C", "a corpus")
    _root(export)
    _store(export)
    export.add_argument("--format", choices=("metamorph-jsonl",), required=True, help="MetaMorph's one merged JSONL")
    export.add_argument("--out", type=_path, metavar="DIR", help="new or empty (default: ROOT/exports/C)")

    model = _verb(
        verbs, "export-model", _export_model, "write a run as what transformers and diffusers open without us"
    )
    _named(model, "folder", "RUN", "a run")
    _root(model)
    model.add_argument("--out", type=_path, metavar="DIR", help="not there yet (default: RUN/exported)")

    taken = _verb(verbs, "import-model", _import_model, "make a run of what an upstream trainer saved")
    taken.add_argument(
        "folder", type=_path, metavar="DIR", help="what the trainer wrote: weights by name, in one folder"
    )
    taken.add_argument(
        "--as", dest="recipe", required=True, metavar="RECIPE", help="a training of the same architecture"
    )
    taken.add_argument(
        "--format",
        choices=("metamorph", "metaquery", "openuni", "llava"),
        help="which trainer's; by default the names of the tensors tell",
    )
    _set(taken)
    _root(taken)

    planned = _verb(verbs, "plan", _plan, "what a training takes: parameters, memory by ZeRO stage, and its data")
    _recipe(planned)
    planned.add_argument("--for", dest="training", metavar="RECIPE", help="of a training, for a recipe of a mixture")
    _data(planned)
    _root(planned)
    _store(planned)
    planned.add_argument("--nodes", type=_count, default=1, help="machines")
    planned.add_argument("--gpus", type=_count, default=8, help="of each machine")
    planned.add_argument("--gpu-memory", type=_count, metavar="GB", help="of one GPU: what cannot fit is refused")

    measure = _verb(verbs, "measure", _measure, "encode the pictures that a training reads, once for all trainings")
    _recipe(measure)
    _data(measure)
    _root(measure)
    _store(measure)
    _workers(measure)
    measure.add_argument(
        "--dtype", choices=("float32", "float16", "bfloat16"), default="float32", help="what features are kept in"
    )
    _cluster(measure)

    train = _verb(verbs, "train", _train, "train a recipe on built corpora; the same command resumes")
    _recipe(train)
    _data(train)
    _root(train)
    _store(train)
    _workers(train)
    _cluster(train)

    sample = _verb(verbs, "sample", _sample, "let a trained run answer in text and pictures")
    _named(sample, "folder", "RUN", "a run")
    sample.add_argument("prompt", nargs="?", help="what the user says")
    sample.add_argument("--prompts", type=_file, metavar="FILE", help="a prompt per line instead")
    sample.add_argument("--answer", choices=("picture", "text", "free"), default="free", help="free: the model decides")
    sample.add_argument("--image", type=_file, metavar="FILE", action="append", default=[], help="a picture to show it")
    sample.add_argument("--visualizer", metavar="RUN", help="the run that paints; by default found beside it")
    sample.add_argument("--seed", type=_number, default=0, help="of the paint's noise")
    sample.add_argument("--guidance", type=_finite, default=2.0, help="classifier-free guidance of the paint")
    sample.add_argument("--steps", type=_count, default=50, help="denoising steps of the paint")
    sample.add_argument("--max-tokens", type=_count, default=128, help="tokens of the longest answer")
    _root(sample)

    look = _verb(verbs, "look", _look, "a page about one position of a training: text, pictures, who sees whom")
    _recipe(look)
    _data(look)
    _root(look)
    _store(look)
    look.add_argument("--position", type=_number, default=0, help="which scheduled batch")
    _page(look, "look.html")

    audit = _verb(
        verbs, "audit", _audit, "what a run was planned to be fed and was fed, by source; exit 1 if they differ"
    )
    _named(audit, "folder", "RUN", "a run")
    _data(audit)
    _root(audit)
    _store(audit)

    trace = _verb(verbs, "trace", _trace, "where a record is trained, or which input rows a position holds")
    _named(trace, "folder", "RUN", "a run")
    one = trace.add_mutually_exclusive_group(required=True)
    one.add_argument("--position", type=_number, help="a scheduled batch, from 0")
    one.add_argument("--record", metavar="KEY", help="a record's key")
    _data(trace)
    _root(trace)
    _store(trace)

    evaluate = _verb(verbs, "evaluate", _evaluate, "losses per task, and answers, on records that no training saw")
    _named(evaluate, "folder", "RUN", "a run")
    _data(evaluate)
    _root(evaluate)
    _store(evaluate)
    evaluate.add_argument("--records", type=_count, default=64, help="records of each source")
    evaluate.add_argument("--questions", type=_count, default=32, help="questions asked of each task")

    report = _verb(verbs, "report", _report, "a page about corpora and runs that opens without a network")
    _named(report, "folders", "DIR", "corpora, runs and curations", nargs="+")
    _root(report)
    _store(report)
    _page(report, "report.html")
    return top


class _Help(argparse.HelpFormatter):
    """Options with what they are when nothing is said; what is nothing then, and what tells it itself, goes without."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        told = action.help
        nothing = action.default is None or action.default is False or action.default in ([], argparse.SUPPRESS)
        if not told or nothing or not action.option_strings or "default" in told:
            return told
        return f"{told} (default: %(default)s)"


class _Parser(argparse.ArgumentParser):
    """Errors in one line, as everywhere."""

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {message}; see {self.prog} --help", file=sys.stderr)
        sys.exit(2)


def _verb(verbs: Any, name: str, run: Any, text: str) -> argparse.ArgumentParser:
    made = verbs.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".", formatter_class=_Help)
    made.set_defaults(run=run, verb=name)
    return made


def _recipe(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "recipe",
        help="module:function or path/to/file.py:function, with arguments as in 'mixtures:unlock(generation=5000)'; "
        "`interlace list` shows the house's",
    )
    _set(verb)


def _set(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--set", dest="assignments", action="append", default=[], metavar="FIELD=VALUE", help="change a field, by path"
    )


def _data(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--data",
        action="append",
        default=[],
        metavar="[NAME=]DIR",
        help="a folder per source, or where one source or picture root lies: DIR or s3://BUCKET/DIR, gs://, ...",
    )


def _root(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--root", type=_path, default=Path("runs").absolute(), help="where we write (default: runs/)")


def _store(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--corpora",
        type=_folder,
        metavar="DIR",
        help="where built corpora are kept: DIR or s3://BUCKET/DIR, gs://, ... (default: corpora/ under the root)",
    )


def _named(verb: argparse.ArgumentParser, name: str, metavar: str, what: str, **more: Any) -> None:
    verb.add_argument(
        name, metavar=metavar, help=f"{what}: a folder, or the beginning of its name under the root", **more
    )


def _page(verb: argparse.ArgumentParser, name: str) -> None:
    verb.add_argument(
        "--out",
        type=_path,
        default=Path(name).absolute(),
        metavar="FILE",
        help=f"the page to write, over one that is there (default: {name} in this folder)",
    )


def _workers(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--workers", type=_count, default=2, help="Ray workers of a build, ranks of a CPU training")
    verb.add_argument("--ray-address", metavar="HOST:PORT", help="a running cluster (default: a private local one)")


def _cluster(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--cluster", choices=("local",), help="run as a job there instead of in this process")
    verb.add_argument("--dry-run", action="store_true", help="with --cluster: print the job and stop")


def _mini(options: argparse.Namespace, words: list[str]) -> int:
    from pipelines import mini

    if options.data_only is not None:
        mini.data(options.data_only)
    else:
        mini.run(_place(options))
    return 0


def _list(options: argparse.Namespace, words: list[str]) -> int:
    recipes = list(recipe.listing())
    width = max(len(name) for name, _ in recipes)
    for name, line in recipes:
        print(f"{name:{width}}  {line}")
    return 0


def _show(options: argparse.Namespace, words: list[str]) -> int:
    value = _value(options)
    shown = {"recipe": options.recipe, "value": recipe.describe(value)}
    corpora = _corpora(value)
    if corpora:
        shown["recipe_keys"] = {corpus.name: corpus.recipe_key() for corpus in corpora}
    print(json.dumps(shown, indent=2, ensure_ascii=False))
    return 0


def _check(options: argparse.Namespace, words: list[str]) -> int:
    from pipelines import corpus

    place = _place(options)
    value = _value(options)
    if not (corpora := _corpora(value)):
        raise ValueError(f"{options.recipe} is a {type(value).__name__}, it has no corpora: see interlace list")
    checked, wrong = [], 0
    for each in corpora:
        try:
            checked.append(corpus.check(each, place, rows=options.rows))
        except (ValueError, OSError, RuntimeError, MemoryError) as error:
            print(f"{each.name}: {one_line(error)}", file=sys.stderr, flush=True)
            wrong += 1
            continue
        wrong += _say_checked(checked[-1], checked[-1].stops(each))
    if len(corpora) > 1:
        read, kept = sum(len(each.ledger) for each in checked), sum(each.kept for each in checked)
        disk = _gigabytes(sum(each.bytes / each.seen for each in checked if each.seen))
        print(f"{len(checked)} of {len(corpora)} sources: {read} rows read, {kept} records kept; {disk} for a build")
    return 1 if wrong else 0


def _say_checked(found: Checked, stops: str | None) -> bool:
    """A source's rows by outcome, what a build of it takes, and each kind of reason with an example."""
    from dataflow import index

    outcomes = ", ".join(f"{found.rows(name)} {name}" for name in ("kept", "filtered", "corrupt", "missing"))
    print(f"{found.name}: {len(found.ledger)} rows read: {outcomes}", flush=True)
    if found.kept:
        about = "" if found.seen >= 1 else "from a part of the input (--rows reads more): about "
        rows = f"{about}{len(found.ledger) / found.seen:.0f} rows in all"
        if found.bytes:
            size = f"{found.bytes / found.kept / 1000:.1f} kB"
            print(f"  {found.kept} records of {size}; {rows}, {_gigabytes(found.bytes / found.seen)} for a build")
        else:
            print(f"  {found.kept} records in tars that stay where they are; {rows}")
    within = ((name, sum(getattr(row, name) for row in found.ledger if row.outcome == "kept")) for name in _LOST)
    if losses := ", ".join(f"{count} {name}" for name, count in within if count):
        print(f"  in rows that are kept, candidates lost that a build counts, too: {losses}")
    for drop in index.tally(found.ledger):
        print(f"  {drop.rows} {drop.outcome}: {drop.example.reason}  ({drop.example.file} row {drop.example.row})")
    if stops:
        print(f"  {stops}")
    return stops is not None


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def _build(options: argparse.Namespace, words: list[str]) -> int:
    value = _value(options)
    if options.cluster or options.dry_run:
        return _submit(options, words)
    from pipelines import corpus, plan

    place = _place(options)
    mixture = value.mixture if isinstance(value, Training) else value
    if isinstance(mixture, Mixture):
        _all_there(mixture, place)
    if options.explain:
        from pipelines import explain

        held = mixture if isinstance(mixture, Mixture) else _wanted(mixture, Corpus, options)
        for line in explain.lines(held, place, rehash=options.rehash):
            print(line)
    elif isinstance(mixture, Mixture):
        for opened in plan.build(mixture, place, rehash=options.rehash):
            print(opened.corpus)
    else:
        print(corpus.build(_wanted(mixture, Corpus, options), place, rehash=options.rehash))
    return 0


def _verify(options: argparse.Namespace, words: list[str]) -> int:
    from dataflow import index

    folder = named.folder(options.folder, options.root, "corpora", store=_kept(options))
    checked, wrong = 0, 0
    for name, problem in index.verify(folder):
        checked += 1
        if problem:
            wrong += 1
            print(f"{folder / name} {problem}")
    print(f"{folder.name}: {checked} files, {f'{wrong} wrong' if wrong else 'all as built'}")
    return 1 if wrong else 0


def _status(options: argparse.Namespace, words: list[str]) -> int:
    from pipelines import status

    found = list(status.works(options.root, _kept(options)))
    for line in status.lines(found):
        print(line)
    return 1 if any(work.state == "failed" for work in found) else 0


def _gc(options: argparse.Namespace, words: list[str]) -> int:
    from pipelines import gc

    store = _kept(options)
    found = gc.unreferenced(options.root, store)
    for line in gc.lines(found, options.root):
        print(line)
    if options.delete:
        gc.delete(found, options.root, store)
        print("removed")
    elif found:
        print("nothing was touched: --delete removes them")
    return 0


def _diff(options: argparse.Namespace, words: list[str]) -> int:
    from pipelines import diff

    rooms, store = ("corpora", "selections"), _kept(options)
    sides = (named.folder(each, options.root, *rooms, store=store) for each in (options.before, options.after))
    found = diff.compare(*sides, store=store)
    for line in diff.lines(found):
        print(line)
    if options.page is not None:
        print(diff.page(found, options.page))
    return 0 if found.equal else 1


def _export(options: argparse.Namespace, words: list[str]) -> int:
    from pipelines import export

    folder = named.folder(options.folder, options.root, "corpora", store=_kept(options))
    out = options.out or export.beside(folder, options.root)
    print(export.metamorph_jsonl(folder, out))
    return 0


def _export_model(options: argparse.Namespace, words: list[str]) -> int:
    from pipelines import model_export

    folder = named.folder(options.folder, options.root, "trainings")
    out = options.out or folder / "exported"
    for line in model_export.table(model_export.export(folder, out)):
        print(line)
    print(out)
    return 0


def _import_model(options: argparse.Namespace, words: list[str]) -> int:
    training = _wanted(_value(options), Training, options)
    from pipelines import model_import

    done = model_import.imported(
        options.folder, training, options.root, recipe_name=options.recipe, kind=options.format
    )
    for line in done.lines():
        print(line)
    return 0


def _plan(options: argparse.Namespace, words: list[str]) -> int:
    value = _value(options)
    if isinstance(value, Mixture) and options.training:
        options.recipe, options.assignments = options.training, []
        training = replace(_wanted(_value(options), Training, options), mixture=value)
        return _data_plan(training, _place(options))
    training = _wanted(value, Training, options)
    from pipelines.booking import Booking

    booking = Booking.of(training, nodes=options.nodes, gpus=options.gpus)
    for line in booking.page(options.gpu_memory):
        print(line)
    refused = booking.refused(options.gpu_memory)
    if refused is not None:
        print(f"refused: {refused}")
    return max(_data_plan(training, _place(options)), int(refused is not None))


def _data_plan(training: Training, place: Place) -> int:
    """The table of a mixture's data. 1 where it cannot be met; corpora that are not built are no failure of a plan."""
    from pipelines import plan
    from pipelines.corpus import Unbuilt

    try:
        for line in plan.page(training, place):
            print(line)
    except Unbuilt as unbuilt:
        print(f"data: {unbuilt}")
    except ValueError as error:
        print(f"data: {one_line(error)}")
        return 1
    return 0


def _measure(options: argparse.Namespace, words: list[str]) -> int:
    training = _wanted(_value(options), Training, options)
    if options.cluster or options.dry_run:
        return _submit(options, words)
    from pipelines import features

    for folder in features.measure(training, _place(options), dtype=options.dtype):
        print(folder)
    return 0


def _train(options: argparse.Namespace, words: list[str]) -> int:
    value = _wanted(_value(options), Training, options)
    if options.cluster or options.dry_run:
        return _submit(options, words)
    from pipelines import runs

    print(runs.train(value, _place(options), recipe_name=options.recipe, measuring=_measuring(options)))
    return 0


def _measuring(options: argparse.Namespace) -> str:
    """The command that stores what the training of these options reads with execution.features=stored."""
    kept = [each for each in options.assignments if not each.startswith("execution.")]
    words = ["interlace", "measure", options.recipe]
    store = [] if options.corpora is None else [str(options.corpora)]
    given = (("--set", kept), ("--data", options.data), ("--root", [str(options.root)]), ("--corpora", store))
    for option, values in given:
        words += [word for value in values for word in (option, value)]
    return shlex.join(words)


def _prompts(options: argparse.Namespace) -> list[str]:
    try:
        if options.prompts is not None:
            return options.prompts.read_bytes().decode().split("\n")
        options.prompt.encode()
        return [options.prompt]
    except (UnicodeEncodeError, UnicodeDecodeError) as error:
        told = "PROMPT" if options.prompts is None else f"--prompts {options.prompts}"
        raise ValueError(f"{told} is not UTF-8 ({error.reason} at {error.start}): save it as UTF-8") from None


def _sample(options: argparse.Namespace, words: list[str]) -> int:
    if (options.prompt is None) == (options.prompts is None):
        raise ValueError("sample wants a PROMPT or --prompts FILE, one of them")
    from models.interface import Asked
    from pipelines import sample

    prompts = [line for line in _prompts(options) if line.strip()]
    if not prompts:
        raise ValueError("there is no prompt: give some words, or a file with a prompt per line")
    settings = Asked(
        answer=options.answer,
        seed=options.seed,
        guidance=options.guidance,
        steps=options.steps,
        max_tokens=options.max_tokens,
    )
    run = named.folder(options.folder, options.root, "trainings")
    visualizer = options.visualizer and named.folder(options.visualizer, options.root, "trainings")
    for answer in sample.answers(run, prompts, options.image, settings, visualizer=visualizer):
        print(answer.line())
    return 0


def _look(options: argparse.Namespace, words: list[str]) -> int:
    from pipelines import look, runs

    value = _wanted(_value(options), Training, options)
    opened, schedule, training, _ = runs.located(value, _place(options))
    print(look.page(training, runs.batches_of(training, schedule, opened), options.position, options.out))
    return 0


def _audit(options: argparse.Namespace, words: list[str]) -> int:
    from pipelines import audit

    lines, sound = audit.table(_scheduled(options))
    print("\n".join(lines))
    return 0 if sound else 1


def _trace(options: argparse.Namespace, words: list[str]) -> int:
    from pipelines import audit

    held = _scheduled(options)
    if options.record is not None:
        lines = audit.of_record(held, options.record)
    else:
        lines = audit.at_position(held, options.position)
    for line in lines:
        print(line)
    return 0


def _scheduled(options: argparse.Namespace) -> Any:
    from pipelines.audit import Scheduled

    return Scheduled.of(named.folder(options.folder, options.root, "trainings"), _place(options))


def _evaluate(options: argparse.Namespace, words: list[str]) -> int:
    from pipelines import evaluate

    place = _place(options)
    run = named.folder(options.folder, options.root, "trainings")
    found = evaluate.evaluate(run, place, records=options.records, questions=options.questions)
    for name, task in sorted(found.items()):
        print(task.line(name))
    print(run / "evaluation.json")
    return 0


def _report(options: argparse.Namespace, words: list[str]) -> int:
    from pipelines import report

    rooms, store = ("trainings", "corpora", "selections"), _kept(options)
    shown = [named.folder(each, options.root, *rooms, store=store) for each in options.folders]
    print(report.write(options.out, shown, store=store))
    return 0


def _submit(options: argparse.Namespace, words: list[str]) -> int:
    """Hand the same command, less the cluster, to the cluster; with --dry-run show what would be handed over."""
    from clusters.job import Job
    from clusters.local import Local

    if not options.cluster:
        raise ValueError("--dry-run prints the job that --cluster NAME would run: give --cluster too")
    kept = _without(words, "--cluster")
    name = f"{options.verb}-{options.recipe.rpartition('/')[2]}".lower()
    job = Job(
        name="".join(letter if letter.isalnum() else "-" for letter in name)[:47],
        command=(sys.executable, "-m", "pipelines", *(word for word in kept if word != "--dry-run")),
        folder=Path.cwd(),
        environment={"PYTHONPATH": os.pathsep.join(filter(None, [str(HOUSE), os.environ.get("PYTHONPATH")]))},
    )
    if options.dry_run:
        print(Local().render(job))
        return 0
    return Local().run(job)


def _without(words: list[str], option: str) -> list[str]:
    kept, skip = [], False
    for word in words:
        if skip:
            skip = False
        elif word == option:
            skip = True
        elif not word.startswith(f"{option}="):
            kept.append(word)
    return kept


def _value(options: argparse.Namespace) -> Any:
    return recipe.override(recipe.load(options.recipe), options.assignments)


def _wanted(value: Any, kind: type, options: argparse.Namespace) -> Any:
    if not isinstance(value, kind):
        raise ValueError(
            f"{options.recipe} is a {type(value).__name__}, {options.verb} wants a {kind.__name__}: see interlace list"
        )
    return value


def _corpora(value: Any) -> list[Corpus]:
    mixture = value.mixture if isinstance(value, Training) else value
    if isinstance(mixture, Mixture):
        return list(mixture.corpora)
    return [mixture] if isinstance(mixture, Corpus) else []


def _all_there(mixture: Mixture, place: Place) -> None:
    """Fail on the first source without a folder before anything is built."""
    for each in mixture.corpora:
        place.roots.source(each.folder)


def _place(options: argparse.Namespace) -> Place:
    told = vars(options)
    return Place(
        root=told.get("root", Path("runs").absolute()),
        store=_kept(options),
        roots=Roots.parse(told.get("data", [])),
        workers=told.get("workers", Place.workers),
        ray_address=told.get("ray_address"),
    )


def _kept(options: argparse.Namespace) -> Path | None:
    """Where corpora are kept, if not under the root. A store is asked first of all whether it answers."""
    store: Path | None = vars(options).get("corpora")
    if store is not None:
        stores.reach(store)
    return store


def _path(text: str) -> Path:
    return Path(text).expanduser().absolute()


def _folder(text: str) -> Path:
    try:
        return folders.folder(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _file(text: str) -> Path:
    if not (path := _path(text)).is_file():
        raise argparse.ArgumentTypeError(f"no file {path}; give an existing one")
    return path


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 16) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} must be a whole number from 1, of 15 digits at most")
    return int(text)


def _finite(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not abs(number) <= 1000:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} must be a number from -1000 to 1000")
    return number


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise argparse.ArgumentTypeError(f"{text[:40]!r} must be a whole number from 0, of 18 digits at most")
    return int(text)


if __name__ == "__main__":
    main()
