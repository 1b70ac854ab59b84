"""Slurm: the job as one batch script, a task of each node in it. `sbatch` takes it, `scontrol` knows how it is doing.

The script lies in the job's desk, so does what it writes; nodes see both at the same path. A task of each node runs
`clusters.node`, which makes them one Ray cluster and runs the command on the first. What a signal means there:

    USR1, before the time limit  -> the command saves and exits with LEFT -> the job is queued again
    TERM, of `stop`              -> the command is ended, then its Ray, then the script
    a node that is lost          -> LOST, or Slurm sees it first -> the job is queued again, while retries last

A signal goes to the first node's program by its process id: one that Slurm sends to a step reaches every process in
it, Ray's as well, and most die of it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from clusters import network
from clusters.job import LEFT, LOST, Job, Site, State

_GRACE = 60  # seconds that a job has from `stop` until it is killed: its command 20, its Ray 8
_TIDY = 30  # seconds that nodes have from the end of the first one
_ANSWER = 120.0  # seconds in which a command of Slurm ends, a controller that is not there included
_OURS = (  # options of the script: a site may not say them another way
    *("job-name", "nodes", "ntasks", "ntasks-per-node", "cpus-per-task", "gpus-per-node", "mem", "time", "exclusive"),
    *("requeue", "no-requeue", "open-mode", "output", "error", "signal", "chdir", "export", "array", "wrap"),
    *("account", "partition", "qos", "test-only", "parsable", "wait", "help", "usage", "version"),
)
_PLAIN = re.compile(r"[A-Za-z0-9_./:=@%+,-]*")

_SCRIPT = """\
#!/bin/bash
{header}

ulimit -S -c 0  # a core of each rank that a signal ends would fill the disk
{exports}
{lines}
desk={desk}
rm -f "$desk/ended.json" "$desk/first.pid"  # of an earlier attempt
say() {{ echo "slurm job $SLURM_JOB_ID: $*"; }}
say "attempt $((${{SLURM_RESTART_COUNT:-0}} + 1)) on $SLURM_JOB_NODELIST"
[ ! -e "$desk/stopped" ] || exit 143  # between two attempts

# The step, and signals to its first program by its id: one sent to the step would reach every process in it.
first() {{ [ -s "$desk/first.pid" ] && kill -s "$1" "$(cat "$desk/first.pid")"; }}
leave() {{ again=1 told=USR1; say 'the time limit is near, the command is asked to leave'; first USR1; }}
stop() {{
    again=1 told=TERM; say 'asked to stop'
    first TERM || kill -s TERM "$step"
    {{ timeout {grace} tail --pid="$step" -f /dev/null || kill -s TERM "$step"; }} &
}}
again= told=
srun {options} \\
    {program} &
step=$!
trap leave USR1
trap stop TERM
while
    again=
    wait "$step"
    code=$?
    [ -n "$again" ]  # a signal came: wait says so, not how the step ended
do :; done

# srun's own code is the highest of all tasks: the command's is in ended.json, of this attempt or of one before.
attempt="$SLURM_JOB_ID-${{SLURM_RESTART_COUNT:-0}}"
ended=$(sed -n 's/^{{"code": \\([0-9]*\\), "attempt": "'"$attempt"'".*/\\1/p' "$desk/ended.json" 2>/dev/null)
if [ -z "$ended" ] && [ "$code" -gt 128 ] && [ "$code" -lt 255 ]; then
    ended={lost}  # without a word of the command: its node died, or one could not be reached to begin
fi
code=${{ended:-$code}}
why=
if [ -e "$desk/stopped" ] || [ "$told" = TERM ]; then
    :
elif [ "$told" = USR1 ] && [ "$code" = {left} ]; then
    why='it left at its time limit'
elif [ "$code" = {lost} ]; then
    echo "$attempt" >> "$desk/lost.txt"
    [ "$(wc -l < "$desk/lost.txt")" -le {retries} ] && why='it lost a node'
fi
if [ -n "$why" ]; then
    trap - TERM USR1
    rm -f "$desk/ended.json"
    say "$why: queued again"
    scontrol requeue "$SLURM_JOB_ID" && exec sleep 600  # until Slurm ends this attempt
    say 'cannot be queued again: submit it once more'
fi
exit "$code"
"""

_TASK = 'if [ "$SLURM_PROCID" = 0 ]; then echo $$ > "$0/first.pid"; fi; exec "$@"'

_WAITS = {  # Slurm's reason -> in words
    "None": "",
    "Resources": "nodes that are taken",
    "Priority": "jobs before it",
    "BeginTime": "the time at which it may begin: a while after it was queued again",
    "Dependency": "another job",
    "JobHeldUser": "its owner, who holds it: `scontrol release` lets it go",
    "JobHeldAdmin": "an administrator, who holds it",
    "ReqNodeNotAvail": "nodes that are down or reserved",
    "Nodes_required_for_job_are_DOWN,_DRAINED": "nodes that are down or reserved",
    "PartitionDown": "its partition, which is down",
    "PartitionInactive": "its partition, which takes none at present",
    "PartitionNodeLimit": "more nodes than its partition gives: stop it, and ask for fewer",
    "PartitionTimeLimit": "more minutes than its partition gives: stop it, and ask for fewer",
    "launch_failed_requeued_held": "its owner: it could not be started; `scontrol release` tries again",
}
_ENDS: dict[str, tuple[Literal["failed", "stopped", "lost"], str]] = {
    "CANCELLED": ("stopped", ""),
    "TIMEOUT": ("failed", "its time was over, and the command did not leave when asked to: --minutes"),
    "DEADLINE": ("failed", "its deadline passed"),
    "NODE_FAIL": ("failed", "a node went down, and the cluster does not queue jobs again"),
    "BOOT_FAIL": ("failed", "a node did not boot"),
    "OUT_OF_MEMORY": ("failed", "a node ran out of memory: ask for more"),
    "PREEMPTED": ("failed", "another job took its nodes"),
}
_CURES = (  # what sbatch says -> where that was asked for
    (r"(?i)account", "account = {account!r} of the site"),
    (r"(?i)partition", "partition = {partition!r} of the site"),
    (r"(?i)qos", "qos = {qos!r} of the site"),
    (r"(?i)time limit", "--minutes {minutes}"),
    (r"(?i)gres|gpu", "--gpus {gpus}, of each node"),
    (r"(?i)memory", "--memory {memory}, GB of each node"),
    (r"(?i)feature|constraint|option", "options = {options} of the site"),
    (r"(?i)node|processor|cpu|config", "--nodes {nodes} with --gpus {gpus} --cpus {cpus} --memory {memory} each"),
)


@dataclass(frozen=True, kw_only=True)
class Slurm(Site):
    """A Slurm cluster whose `sbatch` is on the path here and whose nodes see the root at the path it has here.

    account, partition, qos: as sbatch takes them, "" for its own. options: more of sbatch's, "--constraint=h100".
    modules: loaded before the command. lines: of shell, run before it on the first node, after the modules.
    container: what runs `image` on the nodes, whose `python` it is then. mounts: "/data" or "/data:/there:ro", what the
    image sees beside the job's root. python: the interpreter on the nodes, this one where nothing is said.
    signal_seconds: how long before its time limit a command is asked to save and leave. retries: how often a job that
    lost a node is queued again. exclusive: nodes whole, whatever of them is asked for.
    """

    account: str = ""
    partition: str = ""
    qos: str = ""
    options: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    lines: tuple[str, ...] = ()
    container: Literal["", "pyxis", "apptainer"] = ""
    image: str = ""
    mounts: tuple[str, ...] = ()
    python: str = ""
    signal_seconds: int = 180
    retries: int = 3
    exclusive: bool = False

    kind: ClassVar[str] = "slurm"
    shared: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not self.python:
            object.__setattr__(self, "python", "python" if self.image else sys.executable)
        told = {name: value for name, value in vars(self).items() if isinstance(value, str | tuple)}
        for name, value in told.items():
            for text in (value,) if isinstance(value, str) else value:
                if any(ord(letter) < 32 or ord(letter) == 127 for letter in text):
                    raise ValueError(f"{name} = {text[:60]!r} holds a control character: write it without")
        if bool(self.container) != bool(self.image):
            raise ValueError(
                f"container = {self.container!r} with image = {self.image!r}: say both, what runs it and what is run"
            )
        if self.mounts and not self.image:
            raise ValueError(f"mounts = {list(self.mounts)}: they are of an image, and there is none; leave it out")
        if self.root:
            raise ValueError(f"root = {self.root!r}: nodes must see --root at the path it has here; leave it out")
        for option in self.options:
            name = re.match(r"--([a-z-]+)(=.|$)", option)
            if not name:
                raise ValueError(f"options: {option!r} must be one of sbatch's, as --name or --name=value")
            if name[1] in _OURS:
                raise ValueError(f"options: {option!r} is said by the job or a field of its own: leave it out")
        if not 0 < self.signal_seconds <= 65535:
            raise ValueError(f"signal_seconds = {self.signal_seconds} must be from 1 to 65535")
        if self.retries < 0:
            raise ValueError(f"retries = {self.retries} must be 0 or more")

    def joins(self, job: Job) -> bool:
        """Where it has several nodes: their programs make them one cluster."""
        return job.nodes > 1

    def render(self, job: Job) -> dict[str, str]:
        """The batch script. ValueError: fields it cannot hold, a time limit that ends before it began."""
        job.checked()
        if job.minutes and job.minutes * 60 < self.signal_seconds + 60:
            raise ValueError(
                f"{job.minutes} minutes for job {job.name}: it is asked to leave {self.signal_seconds} s before they "
                "are over (signal_seconds of the site), by Slurm up to a minute earlier: give it more"
            )
        if "\\" in str(job.desk):
            raise ValueError(f"{job.desk} holds a backslash, which Slurm drops from a log's path: use another root")
        header = [f"#SBATCH {_quoted(option)}" for option in self._header(job)]
        variables = network.environment(job, self)
        exports = [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
        path = f"export PYTHONPATH={shlex.quote(str(job.code))}${{PYTHONPATH:+:$PYTHONPATH}}"
        module = "command -v module >/dev/null || . /etc/profile"
        loads = [f"module load {shlex.quote(name)} || exit" for name in self.modules]
        lines = [*([module, *loads] if loads else []), *self.lines, path]
        wrapped = ["sh", "-c", _TASK, str(job.desk), self.python, "-m", "clusters.node", str(job.desk)]
        options = [
            f"--nodes={job.nodes}",
            f"--ntasks={job.nodes}",
            "--ntasks-per-node=1",
            "--kill-on-bad-exit=0",  # the first tells the others that it is over: they tidy up,
            f"--wait={_TIDY}",  # and have so many seconds for that
            "--cpu-bind=none",  # a task has all that its node gives the job
        ]
        if self.container == "pyxis":
            options += self._pyxis(job, (*variables, "PYTHONPATH"))
        if self.container == "apptainer":
            lines += [f'export APPTAINERENV_{name}="${name}"' for name in (*variables, "PYTHONPATH")]
            wrapped = [*self._apptainer(job), *wrapped]
        script = _SCRIPT.format(
            header="\n".join(header),
            exports="\n".join(exports),
            lines="\n".join(lines),
            desk=shlex.quote(str(job.desk)),
            grace=_GRACE,
            options=shlex.join(options),
            program=shlex.join(wrapped),
            left=LEFT,
            lost=LOST,
            retries=self.retries,
        )
        return {"job.sbatch": script}

    def check(self, job: Job) -> None:
        """Let sbatch look at the script. ValueError: no sbatch here, no pyxis, or what it says of the script."""
        try:
            _ask("sbatch", "--test-only", script=self.render(job)["job.sbatch"])
        except _RefusedError as refused:
            # It looks at nodes as they are now: for one that is down a job may wait, and sbatch itself knows that.
            if "onfiguration is not available" not in str(refused) or not self._may_wait(job):
                raise self._refused(job, str(refused)) from None
        if self.container == "pyxis" and "--container-image" not in _ask("srun", "--help"):
            raise ValueError("container = 'pyxis' of the site: srun has no --container-image here, there is no pyxis")

    def submit(self, job: Job) -> str:
        """Its number at Slurm. ValueError: what sbatch says, of what could not be known before."""
        try:
            said = _ask("sbatch", "--parsable", str(job.desk / "job.sbatch"))
        except _RefusedError as refused:
            raise self._refused(job, str(refused)) from None
        return said.strip().splitlines()[-1].partition(";")[0]  # number;cluster

    def state(self, job: Job, there: str) -> State:
        """What Slurm says of it, and how its last attempt ended. ValueError where the controller does not answer."""
        ended = _ended(job)
        try:
            told = _ask("scontrol", "--oneliner", "show", "job", there)
        except _RefusedError as refused:
            if "nvalid job id" not in str(refused):
                raise
            if ended is None:
                return State(name="lost", why=f"Slurm knows no job {there} any more, and it did not say how it ended")
            return _over(**ended)
        fields = dict(re.findall(r"(?:^| )(JobState|Reason|Restarts|ExitCode)=(\S*)", told))
        name, reason = fields["JobState"], fields.get("Reason", "None")
        mine = ended is not None and ended["attempt"] == f"{there}-{fields.get('Restarts', '0')}"
        how = _over(**ended) if ended is not None and mine else None
        if name in ("PENDING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT", "REQUEUE_FED"):
            return State(name="waiting", why=_waits(reason))
        if name in ("SUSPENDED", "STOPPED"):
            return State(name="waiting", why="Slurm, which holds its processes (suspended)")
        if name == "CONFIGURING":
            return State(name="waiting", why="its nodes to be made ready")
        if name in ("RUNNING", "SIGNALING", "STAGE_OUT", "RESIZING", "COMPLETING"):
            return State(name="running", why="its nodes are given back" if name == "COMPLETING" else "")
        if name in _ENDS and (how is None or how.code):
            end, why = _ENDS[name]
            return State(name=end, why=why, code=how and how.code)
        if how is not None:
            return how
        code, _, ended_by = fields.get("ExitCode", "1:0").partition(":")
        return _over(128 + int(ended_by) if int(ended_by) else int(code))

    def log(self, job: Job, there: str, seen: int) -> bytes:
        """What the job and all its nodes wrote after the first `seen` bytes."""
        return job.said(seen)

    def stop(self, job: Job, there: str) -> None:
        """Ask its script to, which ends the command and its Ray; one that waits is taken out of the queue."""
        with contextlib.suppress(_RefusedError):  # it ended meanwhile, or went back to the queue
            if "JobState=RUNNING" in _ask("scontrol", "--oneliner", "show", "job", there):
                _ask("scancel", "--batch", "--signal=TERM", there)
                return
        with contextlib.suppress(_RefusedError):  # it was over
            _ask("scancel", there)

    def _refused(self, job: Job, said: str) -> ValueError:
        """What sbatch said, and where that was asked for."""
        asked = {**vars(self), **vars(job), "options": list(self.options)}
        cure = next((cure.format_map(asked) for words, cure in _CURES if re.search(words, said)), "")
        if cure.startswith("partition"):
            cure += f"; there are {', '.join(_words('sinfo', '--noheader', '--format=%R'))}"
        return ValueError(f"Slurm does not take job {job.name}: {said}" + (f": {cure}" if cure else ""))

    def _may_wait(self, job: Job) -> bool:
        """Whether nodes are missing only now: some are down, and with them there are enough."""
        partition = [f"--partition={self.partition}"] if self.partition else []
        nodes = set(_words("sinfo", "--noheader", "--Node", "--format=%N:%t", *partition))  # n1:idle n2:down*
        down = [node for node in nodes if re.search(r":(down|drain|drng|fail|maint|unk)|\*$", node)]
        return bool(down) and len(nodes) >= job.nodes

    def _header(self, job: Job) -> Iterable[str]:
        yield f"--job-name={job.name}"
        for name in ("account", "partition", "qos"):
            if value := getattr(self, name):
                yield f"--{name}={value}"
        yield f"--nodes={job.nodes}"
        yield "--ntasks-per-node=1"
        if job.cpus:
            yield f"--cpus-per-task={job.cpus}"
        if job.gpus:
            yield f"--gpus-per-node={job.gpus}"
        if job.memory:
            yield f"--mem={job.memory}G"
        if job.minutes:
            yield f"--time={job.minutes}"
        if self.exclusive or not job.cpus:
            yield "--exclusive"
        yield "--requeue"
        yield f"--signal=B:USR1@{self.signal_seconds}"
        yield f"--chdir={job.folder}"
        yield f"--output={str(job.desk / 'log.txt').replace('%', '%%')}"
        yield "--open-mode=append"
        yield from self.options

    def _mounts(self, job: Job) -> list[str]:
        """What the image sees: the job's own folders at their paths, and what the site says."""
        own = [job.desk.parent.parent]
        own += [path for path in (job.code, job.folder) if not path.is_relative_to(own[0])]
        for path in own:
            if re.search("[,:]", str(path)):
                raise ValueError(f"{path} cannot be mounted into an image: ',' and ':' part mounts; use another folder")
        return [*dict.fromkeys([f"{path}:{path}" for path in own]), *self.mounts]

    def _pyxis(self, job: Job, variables: Iterable[str]) -> list[str]:
        mounts = [mount if ":" in mount else f"{mount}:{mount}" for mount in self._mounts(job)]
        return [
            f"--container-image={self.image}",
            f"--container-mounts={','.join(mounts)}",
            f"--container-workdir={job.folder}",
            f"--container-env={','.join(variables)}",  # an image's own would win
        ]

    def _apptainer(self, job: Job) -> list[str]:
        mounts = [word for mount in self._mounts(job) for word in ("--bind", mount)]
        return ["apptainer", "exec", *(["--nv"] if job.gpus else []), *mounts, "--pwd", str(job.folder), self.image]


class _RefusedError(ValueError):
    """Slurm answered, and said no."""


def _quoted(option: str) -> str:
    """An option in a #SBATCH line, whose rules are not a shell's: in double quotes only those and backslashes count."""
    if _PLAIN.fullmatch(option):
        return option
    return '"' + option.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _ask(*words: str, script: str | None = None) -> str:
    """What a command of Slurm says. ValueError where there is none, or nobody answers it; _RefusedError: it says no."""
    # SBATCH_* would win over the script, SLURM_JOB_* of a job that this is run in would be taken for the new one's.
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("SBATCH_", "SLURM_", "SLURMD_")) or name in ("SLURM_CONF", "SLURM_JWT")
    }
    try:
        done = subprocess.run(words, input=script or "", env=kept, capture_output=True, text=True, timeout=_ANSWER)
    except FileNotFoundError:
        raise ValueError(
            f"there is no {words[0]} on the path: run this on a login node of the cluster, or with its Slurm clients"
        ) from None
    except subprocess.TimeoutExpired:
        raise ValueError(f"Slurm does not answer: {words[0]} took over {_ANSWER:.0f} s; ask `scontrol ping`") from None
    if done.returncode == 0:
        return done.stdout
    lines = [
        re.sub(r"^(sbatch|scontrol|scancel|slurm_load_jobs)?:?\s*(error:)?\s*", "", line)
        for line in done.stderr.splitlines()
    ]
    said = "; ".join(dict.fromkeys(filter(None, lines))) or f"exit {done.returncode}"
    if re.search(r"(?i)unable to contact|connection refused|timed out|connect failure|resolve|munge", said):
        raise ValueError(f"Slurm does not answer: {said}; `scontrol ping` tells whether its controller is up")
    raise _RefusedError(said)


def _words(*words: str) -> list[str]:
    """Those of an answer; none where there is no answer."""
    try:
        return _ask(*words).split()
    except ValueError:
        return []


def _ended(job: Job) -> dict[str, Any] | None:
    try:
        return json.loads((job.desk / "ended.json").read_bytes())
    except FileNotFoundError:
        return None


def _over(code: int, why: str = "", attempt: str = "") -> State:
    """What a command's end means. The arguments are what ended.json holds."""
    words = {0: "", LOST: "it lost a node, as often as its site lets it be queued again"}
    return State(name="failed" if code else "done", why=why or words.get(code, f"exit code {code}"), code=code)


def _waits(reason: str) -> str:
    known = next((words for name, words in _WAITS.items() if reason.startswith(name)), None)
    if known is None and re.match("Assoc|QOS", reason):
        return f"a limit of its account or qos ({reason})"
    return reason if known is None else known
