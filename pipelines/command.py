"""The command: `interlace VERB ...`. Words become values, relative paths absolute ones, errors one line.

Exit codes: 0 done; 1 it ran and the answer is no (check, verify, status, diff, plan); 2 what was asked cannot be done;
75 left where it was told to by SIGUSR1, and 130 interrupted: the same command goes on.
Heavy imports happen inside the verbs that need them: `list`, `show` and `--help` load neither torch nor ray.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from clusters.job import LEFT
from dataflow import stores
from dataflow.mixture import Mixture
from dataflow.roots import Roots
from pipelines import named, recipe
from pipelines.corpus import Checked, Corpus
from pipelines.grammar import STAGES, parser
from pipelines.step import Left, Place, one_line
from pipelines.training import Training

_LOST = ("filtered", "duplicate", "corrupt", "missing")  # what a ledger says of a candidate that is no record


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run one command and exit with its code."""
    words = sys.argv[1:] if arguments is None else arguments
    options = parser().parse_args(words)
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGUSR1, _leave)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as under nohup
        signal.signal(signal.SIGHUP, _stop)
    try:
        options.typed = shlex.join(["interlace", *words])
        _alone(options)
        code = _VERBS[options.verb](options)
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
    except Left as left:
        print(f"interlace: {left}", file=sys.stderr)
        code = LEFT
    except KeyboardInterrupt:
        print("interlace: interrupted; the same command goes on from here", file=sys.stderr)
        code = 130
    sys.exit(code)


def _stop(number: int, frame: Any) -> NoReturn:
    raise KeyboardInterrupt


def _alone(options: argparse.Namespace) -> None:
    """ValueError for what is said of a job where there is none, and of this machine where there is one."""
    told = vars(options)
    if options.verb not in ("build", "measure", "train", "run"):
        return
    if told["cluster"]:
        if told["ray_address"]:
            raise ValueError("--ray-address is where a command runs without --cluster: give one of them")
        return
    said = {name: told[name] for name in ("cpus", "memory", "minutes", "follow", "dry_run") if told[name]}
    if options.verb in ("build", "measure"):
        said |= {name: told[name] for name in ("nodes", "gpus") if told[name] != (name == "nodes")}
    elif told["nodes"] > 1 and not told["ray_address"]:
        said["nodes"] = told["nodes"]
    if said:
        name = next(iter(said)).replace("_", "-")
        raise ValueError(f"--{name} is said of a job, and this machine runs the command itself: give --cluster too")


def _leave(number: int, frame: Any) -> NoReturn:
    raise Left("left, as it was told to; the same command goes on from here")


def _mini(options: argparse.Namespace) -> int:
    from pipelines import mini

    if options.data_only is not None:
        mini.data(options.data_only)
    else:
        mini.run(_place(options))
    return 0


def _list(options: argparse.Namespace) -> int:
    recipes = list(recipe.listing())
    width = max(len(name) for name, _ in recipes)
    for name, line in recipes:
        print(f"{name:{width}}  {line}")
    return 0


def _show(options: argparse.Namespace) -> int:
    value = _value(options)
    shown = {"recipe": options.recipe, "value": recipe.describe(value)}
    corpora = _corpora(value)
    if corpora:
        shown["recipe_keys"] = {corpus.name: corpus.recipe_key() for corpus in corpora}
    print(json.dumps(shown, indent=2, ensure_ascii=False))
    return 0


def _check(options: argparse.Namespace) -> int:
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


def _build(options: argparse.Namespace) -> int:
    value = _value(options)
    if options.cluster:
        return _submit(options, value)
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


def _verify(options: argparse.Namespace) -> int:
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


def _status(options: argparse.Namespace) -> int:
    from pipelines import status

    found = list(status.works(options.root, _kept(options)))
    for line in status.lines(found):
        print(line)
    return 1 if any(work.state == "failed" for work in found) else 0


def _gc(options: argparse.Namespace) -> int:
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


def _diff(options: argparse.Namespace) -> int:
    from pipelines import diff

    rooms, store = ("corpora", "selections"), _kept(options)
    sides = (named.folder(each, options.root, *rooms, store=store) for each in (options.before, options.after))
    found = diff.compare(*sides, store=store)
    for line in diff.lines(found):
        print(line)
    if options.page is not None:
        print(diff.page(found, options.page))
    return 0 if found.equal else 1


def _export(options: argparse.Namespace) -> int:
    from pipelines import export

    folder = named.folder(options.folder, options.root, "corpora", store=_kept(options))
    out = options.out or export.beside(folder, options.root)
    print(export.metamorph_jsonl(folder, out))
    return 0


def _export_model(options: argparse.Namespace) -> int:
    from pipelines import model_export

    folder = named.folder(options.folder, options.root, "trainings")
    out = options.out or folder / "exported"
    for line in model_export.table(model_export.export(folder, out)):
        print(line)
    print(out)
    return 0


def _import_model(options: argparse.Namespace) -> int:
    training = _wanted(_value(options), Training, options)
    from pipelines import model_import

    done = model_import.imported(
        options.folder, training, options.root, recipe_name=options.recipe, kind=options.format
    )
    for line in done.lines():
        print(line)
    return 0


def _plan(options: argparse.Namespace) -> int:
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


def _measure(options: argparse.Namespace) -> int:
    value = _wanted(_value(options), Training, options)
    if options.cluster:
        return _submit(options, value)
    from pipelines import features

    for folder in features.measure(value, _place(options), dtype=options.dtype):
        print(folder)
    return 0


def _train(options: argparse.Namespace) -> int:
    value = _wanted(_value(options), Training, options)
    if options.cluster:
        return _submit(options, value)
    from pipelines import runs

    print(runs.train(value, _place(options), recipe_name=options.recipe, measuring=_measuring(options)))
    return 0


def _run(options: argparse.Namespace) -> int:
    value = _wanted(_value(options), Training, options)
    first, last = STAGES.index(options.first), STAGES.index(options.last)
    if first > last:
        raise ValueError(f"--from {options.first} --to {options.last}: stages go {', '.join(STAGES)}")
    if options.cluster:
        return _submit(options, value)
    from pipelines import chain

    print(chain.run(value, _place(options), recipe_name=options.recipe, stages=STAGES[first : last + 1]))
    return 0


def _measuring(options: argparse.Namespace) -> str:
    """The command that stores what the training of these options reads with execution.features=stored."""
    kept = [each for each in options.assignments if not each.startswith("execution.")]
    words = ["interlace", "measure", options.recipe, *_options(options, set=kept), "--root", str(options.root)]
    return shlex.join(words)


def _options(options: argparse.Namespace, **more: Sequence[object]) -> list[str]:
    """What a command was told of its recipe and its data, as words again; and more of its options."""
    told = vars(options)
    given = {"set": told["assignments"], "data": told["data"], "corpora": filter(None, [told["corpora"]]), **more}
    return [word for name, values in given.items() for value in values for word in (f"--{name}", str(value))]


def _prompts(options: argparse.Namespace) -> list[str]:
    try:
        if options.prompts is not None:
            return options.prompts.read_bytes().decode().split("\n")
        options.prompt.encode()
        return [options.prompt]
    except (UnicodeEncodeError, UnicodeDecodeError) as error:
        told = "PROMPT" if options.prompts is None else f"--prompts {options.prompts}"
        raise ValueError(f"{told} is not UTF-8 ({error.reason} at {error.start}): save it as UTF-8") from None


def _sample(options: argparse.Namespace) -> int:
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


def _look(options: argparse.Namespace) -> int:
    from pipelines import look, runs

    value = _wanted(_value(options), Training, options)
    opened, schedule, training, _ = runs.located(value, _place(options))
    print(look.page(training, runs.batches_of(training, schedule, opened), options.position, options.out))
    return 0


def _audit(options: argparse.Namespace) -> int:
    from pipelines import audit

    lines, sound = audit.table(_scheduled(options))
    print("\n".join(lines))
    return 0 if sound else 1


def _trace(options: argparse.Namespace) -> int:
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


def _evaluate(options: argparse.Namespace) -> int:
    from pipelines import evaluate

    place = _place(options)
    run = named.folder(options.folder, options.root, "trainings")
    found = evaluate.evaluate(run, place, records=options.records, questions=options.questions)
    for name, task in sorted(found.items()):
        print(task.line(name))
    print(run / "evaluation.json")
    return 0


def _report(options: argparse.Namespace) -> int:
    from pipelines import report

    rooms, store = ("trainings", "corpora", "selections"), _kept(options)
    shown = [named.folder(each, options.root, *rooms, store=store) for each in options.folders]
    print(report.write(options.out, shown, store=store))
    return 0


def _sweep(options: argparse.Namespace) -> int:
    from clusters import sites
    from pipelines import sweep

    cluster, wanted, found = sites.site(options.cluster or "local"), _needs(options), []
    for sets in sweep.points(options.grid):
        each = argparse.Namespace(**{**vars(options), "assignments": [*options.assignments, *sets], "verb": "train"})
        found.append(sweep.Point(sets=sets, order=_order(each, _wanted(_value(each), Training, options))))
    if options.dry_run:
        for point in found:
            print(f"# {' '.join(point.sets)}")
            for text in cluster.render(point.order.job(cluster, wanted)).values():
                print(text)
        return 0
    from pipelines import submit

    place = _place(options) if cluster.shared else Place(root=options.root)
    for point in found:
        if why := submit.refused(point.order, cluster, wanted, place):
            raise ValueError(f"{' '.join(point.sets)}: refused: {why}")
    at_once = options.at_once or (1 if cluster.kind == "local" else len(found))
    sound = sweep.run(found, cluster, wanted, at_once=at_once)
    folders = sweep.trained(found, place)
    for line in sweep.table(found, folders):
        print(line)
    if (page := sweep.page(folders, options.out)) is not None:
        print(page)
    return 0 if sound else 1


def _jobs(options: argparse.Namespace) -> int:
    from clusters import jobs

    if not (found := jobs.listing(options.root)):
        print(f"no jobs under {options.root}")
        return 0
    for line in jobs.table(found):
        print(line)
    return 0


def _logs(options: argparse.Namespace) -> int:
    submitted = _job(options)
    return _follow(submitted) if options.follow else _say(submitted.log())


def _stop_job(options: argparse.Namespace) -> int:
    submitted = _job(options)
    told = "is told to stop" if submitted.stop() else f"is over: {submitted.state().name}"
    print(f"{submitted.job.name} {told}")
    return 0


def _job(options: argparse.Namespace) -> Any:
    from clusters import jobs

    return jobs.find(options.root, options.job)


def _say(piece: bytes) -> int:
    sys.stdout.write(piece.decode(errors="replace"))
    sys.stdout.flush()
    return 0


def _follow(submitted: Any) -> int:
    """Show what a job says until it is over; its exit code."""
    try:
        for piece in submitted.follow():
            _say(piece)
    except KeyboardInterrupt:
        print(f"\n{submitted.job.name} goes on; interlace stop {submitted.job.name} ends it", file=sys.stderr)
        return 130
    state = submitted.state()
    print(f"{submitted.job.name}: {state.name}{f', {state.why}' if state.why else ''}", file=sys.stderr)
    return state.code if state.code is not None else int(state.name != "done")


def _submit(options: argparse.Namespace, value: Any) -> int:
    """Hand the same command, less the cluster, to the cluster; with --dry-run show what would be handed over."""
    from clusters import sites
    from pipelines import submit

    cluster, wanted, order = sites.site(options.cluster), _needs(options), _order(options, value)
    job = order.job(cluster, wanted)
    if options.dry_run:
        for line in order.page(job, cluster):
            print(line)
        return 0
    place = _place(options) if cluster.shared else Place(root=options.root)
    begins = options.verb == "train" or (options.verb == "run" and options.first != STAGES[0])
    if why := submit.refused(order, cluster, wanted, place if begins else None):
        print(f"refused: {why}")
        return 1
    submitted = order.submit(job, cluster)
    nodes = f"{job.nodes} nodes" if job.nodes > 1 else "1 node"
    root = "" if options.root == Path("runs").absolute() else f" --root {shlex.quote(str(options.root))}"
    print(f"{job.name}: submitted to {cluster.kind} as {submitted.there}, {nodes}; {job.desk}", flush=True)
    if options.follow:
        return _follow(submitted)
    print(f"interlace logs {job.name} --follow{root}   interlace stop {job.name}{root}")
    return 0


def _order(options: argparse.Namespace, value: Any) -> Any:
    """The command of these options as it is submitted: every option it takes there, said out; folders absolute."""
    from pipelines import submit

    told = vars(options)
    ranks = {name: [told[name]] for name in ("workers", "nodes", "gpus") if options.verb in ("train", "run")}
    stages = {"from": [told["first"]], "to": [told["last"]]} if options.verb == "run" else {}
    other = {name: [told[name]] for name in ("workers",) if options.verb in ("build", "measure")}
    dtype = {"dtype": [options.dtype]} if options.verb == "measure" else {}
    words = _options(options, data=submit.absolute(options.data), **ranks, **stages, **other, **dtype)
    words += [f"--{name}" for name in ("rehash", "explain") if told.get(name)]
    return submit.Order(
        verb=options.verb,
        recipe=options.recipe,
        value=value,
        words=tuple(words),
        typed=options.typed,
        root=options.root,
    )


def _needs(options: argparse.Namespace) -> Any:
    from pipelines import submit

    if options.verb in ("train", "run", "sweep") and not options.gpus and options.nodes > options.workers:
        raise ValueError(
            f"--nodes {options.nodes} with --workers {options.workers}: a node would have no rank; "
            f"give --workers {options.nodes} or more, or --gpus of each node"
        )
    return submit.Wanted(
        nodes=options.nodes, gpus=options.gpus, cpus=options.cpus, memory=options.memory, minutes=options.minutes
    )


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
        workers=told.get("nodes", 1) * told.get("gpus", 0) or told.get("workers", Place.workers),
        nodes=told.get("nodes", 1),
        gpus=told.get("gpus", 0),
        ray_address=told.get("ray_address"),
    )


def _kept(options: argparse.Namespace) -> Path | None:
    """Where corpora are kept, if not under the root. A store is asked first of all whether it answers."""
    store: Path | None = vars(options).get("corpora")
    if store is not None:
        stores.reach(store)
    return store


_VERBS = {
    "mini": _mini,
    "list": _list,
    "show": _show,
    "check": _check,
    "build": _build,
    "verify": _verify,
    "status": _status,
    "gc": _gc,
    "diff": _diff,
    "export-corpus": _export,
    "export-model": _export_model,
    "import-model": _import_model,
    "plan": _plan,
    "measure": _measure,
    "train": _train,
    "run": _run,
    "sweep": _sweep,
    "jobs": _jobs,
    "logs": _logs,
    "stop": _stop_job,
    "sample": _sample,
    "look": _look,
    "audit": _audit,
    "trace": _trace,
    "evaluate": _evaluate,
    "report": _report,
}
