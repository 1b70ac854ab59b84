"""The grammar of the command: verbs, what each is told, and what words become: absolute paths, bounded numbers."""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import Any, NoReturn

from dataflow import folders

STAGES = ("build", "measure", "train", "sample", "evaluate")  # of `interlace run`


def parser() -> argparse.ArgumentParser:
    """The grammar of the command."""
    top = _Parser(prog="interlace", description="Raw corpora in, one exact mixture, trained unified models out.")
    verbs = top.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=_Parser)

    mini = _verb(verbs, "mini", "the whole line in miniature: corpora, training, pictures, a report")
    _root(mini)
    _workers(mini)
    mini.add_argument("--data-only", type=_path, metavar="DIR", help="only write the miniature corpora to DIR")

    _verb(verbs, "list", "recipes, a line each")

    show = _verb(verbs, "show", "one recipe as JSON, with the recipe keys of its corpora")
    _recipe(show)

    check = _verb(verbs, "check", "read some rows of every source, write nothing: kept, drops and why")
    _recipe(check)
    _data(check)
    _store(check)
    check.add_argument("--rows", type=_count, default=1000, help="input rows to read of each source")

    build = _verb(verbs, "build", "build the corpora of a recipe that are not built yet")
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

    verify = _verb(verbs, "verify", "hash a built corpus again; exit 1 names what differs")
    _named(verify, "folder", "DIR", "a corpus")
    _root(verify)
    _store(verify)

    status = _verb(verbs, "status", "what lies under a root: finished, running, interrupted, failed and why")
    _root(status)
    _store(status)

    unused = _verb(verbs, "gc", "what under a root nothing refers to any more; removes it when told to")
    _root(unused)
    _store(unused)
    unused.add_argument("--delete", action="store_true", help="remove it; without this nothing is touched")

    compared = _verb(verbs, "diff", "compare two corpora or selections; exit 1 when their records differ")
    _named(compared, "before", "A", "a corpus or a selection")
    _named(compared, "after", "B", "another")
    _root(compared)
    _store(compared)
    compared.add_argument(
        "--page", type=_path, metavar="FILE", help="write it as a page too, with examples, over one that is there"
    )

    export = _verb(verbs, "export-corpus", "write a built corpus as the rows that another trainer reads")
    _named(export, "folder", "C", "a corpus")
    _root(export)
    _store(export)
    export.add_argument("--format", choices=("metamorph-jsonl",), required=True, help="MetaMorph's one merged JSONL")
    export.add_argument("--out", type=_path, metavar="DIR", help="new or empty (default: ROOT/exports/C)")

    model = _verb(verbs, "export-model", "write a run as what transformers and diffusers open without us")
    _named(model, "folder", "RUN", "a run")
    _root(model)
    model.add_argument("--out", type=_path, metavar="DIR", help="not there yet (default: RUN/exported)")

    taken = _verb(verbs, "import-model", "make a run of what an upstream trainer saved")
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

    planned = _verb(verbs, "plan", "what a training takes: parameters, memory by ZeRO stage, and its data")
    _recipe(planned)
    planned.add_argument("--for", dest="training", metavar="RECIPE", help="of a training, for a recipe of a mixture")
    _data(planned)
    _root(planned)
    _store(planned)
    planned.add_argument("--nodes", type=_count, default=1, help="machines")
    planned.add_argument("--gpus", type=_count, default=8, help="of each machine")
    planned.add_argument("--gpu-memory", type=_count, metavar="GB", help="of one GPU: what cannot fit is refused")

    measure = _verb(verbs, "measure", "encode the pictures that a training reads, once for all trainings")
    _recipe(measure)
    _data(measure)
    _root(measure)
    _store(measure)
    _workers(measure)
    measure.add_argument(
        "--dtype", choices=("float32", "float16", "bfloat16"), default="float32", help="what features are kept in"
    )
    _cluster(measure)

    train = _verb(verbs, "train", "train a recipe on built corpora; the same command resumes")
    _training(train)
    _cluster(train)

    chain = _verb(verbs, "run", "a training from its input rows to its evaluation: what is done is skipped")
    _training(chain)
    chain.add_argument("--from", dest="first", choices=STAGES, default=STAGES[0], help="the first stage")
    chain.add_argument("--to", dest="last", choices=STAGES, default=STAGES[-1], help="the last one")
    _cluster(chain)

    sweep = _verb(verbs, "sweep", "a training for every point of a grid, each a job; a table and a page at the end")
    _training(sweep)
    sweep.add_argument(
        "--grid", action="append", default=[], metavar="FIELD=VALUE", help="a value of a field; once for each value"
    )
    sweep.add_argument("--at-once", type=_count, metavar="N", help="jobs (default: 1 on this machine, else all)")
    _page(sweep, "sweep.html")
    _cluster(sweep, follow=False)

    listed = _verb(verbs, "jobs", "submitted jobs and how they are doing, on whatever cluster")
    _root(listed)

    logs = _verb(verbs, "logs", "what a job says")
    logs.add_argument("job", metavar="JOB", help="its name, or the beginning of it")
    _root(logs)
    logs.add_argument("--follow", action="store_true", help="until it is over; exits with its code")

    stop = _verb(verbs, "stop", "end a job and all that it started")
    stop.add_argument("job", metavar="JOB", help="its name, or the beginning of it")
    _root(stop)

    sample = _verb(verbs, "sample", "let a trained run answer in text and pictures")
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

    look = _verb(verbs, "look", "a page about one position of a training: text, pictures, who sees whom")
    _recipe(look)
    _data(look)
    _root(look)
    _store(look)
    look.add_argument("--position", type=_number, default=0, help="which scheduled batch")
    _page(look, "look.html")

    audit = _verb(verbs, "audit", "what a run was planned to be fed and was fed, by source; exit 1 if they differ")
    _named(audit, "folder", "RUN", "a run")
    _data(audit)
    _root(audit)
    _store(audit)

    trace = _verb(verbs, "trace", "where a record is trained, or which input rows a position holds")
    _named(trace, "folder", "RUN", "a run")
    one = trace.add_mutually_exclusive_group(required=True)
    one.add_argument("--position", type=_number, help="a scheduled batch, from 0")
    one.add_argument("--record", metavar="KEY", help="a record's key")
    _data(trace)
    _root(trace)
    _store(trace)

    evaluate = _verb(verbs, "evaluate", "losses per task, and answers, on records that no training saw")
    _named(evaluate, "folder", "RUN", "a run")
    _data(evaluate)
    _root(evaluate)
    _store(evaluate)
    evaluate.add_argument("--records", type=_count, default=64, help="records of each source")
    evaluate.add_argument("--questions", type=_count, default=32, help="questions asked of each task")

    report = _verb(verbs, "report", "a page about corpora and runs that opens without a network")
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


def _verb(verbs: Any, name: str, text: str) -> argparse.ArgumentParser:
    made = verbs.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".", formatter_class=_Help)
    made.set_defaults(verb=name)
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


def _training(verb: argparse.ArgumentParser) -> None:
    _recipe(verb)
    _data(verb)
    _root(verb)
    _store(verb)
    _workers(verb)
    verb.add_argument("--nodes", type=_count, default=1, help="machines that its ranks are spread over")
    verb.add_argument("--gpus", type=_number, default=0, help="of each machine, a rank on each; 0: --workers ranks")


def _cluster(verb: argparse.ArgumentParser, *, follow: bool = True) -> None:
    verb.add_argument(
        "--cluster",
        metavar="NAME|FILE",
        help="submit it as a job there instead of running it here: local, ray, slurm, kuberay, or a site file (TOML)",
    )
    if not any(action.dest == "nodes" for action in verb._actions):
        verb.add_argument("--nodes", type=_count, default=1, help="with --cluster: machines")
        verb.add_argument("--gpus", type=_number, default=0, help="with --cluster: of each machine")
    verb.add_argument("--cpus", type=_number, default=0, help="with --cluster: of each machine; 0: what it has")
    verb.add_argument("--memory", type=_number, default=0, metavar="GB", help="with --cluster: of each machine")
    verb.add_argument("--minutes", type=_number, default=0, help="with --cluster: after which it is ended")
    if follow:
        verb.add_argument("--follow", action="store_true", help="with --cluster: show what it says, until it is over")
    verb.add_argument("--dry-run", action="store_true", help="with --cluster: print all that would be stored and stop")


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
