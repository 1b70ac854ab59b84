"""Kubernetes, through the KubeRay operator: a job is a RayJob, its command line and its code are a ConfigMap beside it.

    kind = "kuberay"
    image = "registry/interlace:0.1"    # made by our Dockerfile, or another one with our dependencies
    root = "/shared/runs"               # on a volume: what is written elsewhere is gone with its pod
    namespace = "research"
    queue = "training"                  # Kueue: all pods of a job at once, or none
    [volumes]
    shared = "/shared"                  # claim = where it is mounted, on every node of a job

The command line is a script in the ConfigMap and not the RayJob's entrypoint, because that one passes through the
kubelet (which replaces `$(NAME)` in it), two shells and a command line before it runs. What the operator adds by itself
is left to it: the token (a Secret per cluster), the Service, probes.
"""

from __future__ import annotations

import base64
import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from typing import Any, ClassVar, Literal

import yaml

from clusters import kuberay_rules, network, snapshot
from clusters.job import LEFT, LOST, Job, Site, State

IMAGE_CODE = "/opt/interlace"  # where our Dockerfile has the code

# Its submitter is a pod of its own: what the command said can be read after its cluster is gone, which a sidecar's
# cannot, and a head that is made again finds a submitter that hands the command over again.
_MODE = "K8sJobMode"
_SUBMITTER = "ray-job-submitter"
_LARGEST = 1 << 20  # bytes in a ConfigMap, of all its values
_PATIENCE = 30  # seconds of one request
_LEAVES = 180  # seconds before its end at which a command with a time limit is told to leave, as under Slurm
_IMAGE = re.compile(r"[A-Za-z0-9][\w.:/@-]*")
_QUANTITY = re.compile(r"[0-9]+(\.[0-9]+)?([KMGTPE]i?|m|k)?")
_TOLERATION = re.compile(r"([^\s=:]+)(?:=([^\s=:]*))?(?::(NoSchedule|PreferNoSchedule|NoExecute))?")
_ADDRESS = re.compile(r"(rediss?://)?[A-Za-z0-9.-]+:[0-9]+")
_RECONNECT = "RAY_gcs_rpc_server_reconnect_timeout_s"
_NOISE = re.compile(r"[EWI][0-9]{4} |Warning: ")  # lines of kubectl that explain nothing
_ADVICE = re.compile(r"error: error validating \S+ |; if you choose to ignore these errors.*")  # not to follow
_CURES = (
    (r"no matches for kind|doesn't have a resource type", "KubeRay is not installed there: install its operator, 1.7"),
    (
        r"Forbidden",
        "ask for rights: create, get, delete rayjobs.ray.io and configmaps; get jobs, pods and pods/log",
    ),
    (r"Unauthorized|must be logged in|provide credentials", "log in to that cluster again"),
    (r"AlreadyExists", "choose another name, or delete that one"),
    (r"context .* does not exist", "`kubectl config get-contexts` lists those that do"),
    (r"namespaces? .* not found", "say another namespace in the site file"),
    (
        r"refused|onnect|no such host|timeout|timed out|deadline|EOF|x509",
        "is its API up, and KUBECONFIG right? ask `kubectl cluster-info`",
    ),
)


@dataclass(frozen=True, kw_only=True)
class KubeRay(Site):
    """A namespace where the KubeRay operator makes Ray clusters.

    A job of one node is a head. One of several is a head that takes no part, where the command runs, and its nodes as
    workers, so that no rank has the driver beside it.

    image: holds our dependencies. python: the interpreter in it. code: "snapshot" sends the code as it is here, "image"
    runs the image's own. namespace, context: kubectl's own where they are empty. queue: Kueue's LocalQueue; without one
    pods come one by one, and workers can take what the head waits for. wait: minutes that a job may take to come
    together, 0 for ever. retries: how often a job that failed is tried anew, on a new cluster. keep: seconds that the
    pods stay, and hold their GPUs, after the end.
    cpus, memory: of a node, where the job says nothing; memory in GB; 0 for no limit. head_cpus, head_memory: of a head
    that takes no part. volumes: where claims are mounted. secrets: Secrets whose keys are variables of the job.
    pull_secrets: Secrets to pull the image with. service_account: whose rights the pods have; none without.
    node_selector: labels of the nodes of the job. tolerations: key, key=value, each with :Effect or for all effects.
    resources: what a node has besides, as rdma/hca = "8". annotations: of the pods of the nodes.
    redis: host:port of a Redis that keeps the head's state; redis_password: SECRET/KEY. head_storage: size of a volume
    that keeps it instead, as 1Gi, where the operator's gate GCSFaultToleranceEmbeddedStorage is on.
    """

    kind: ClassVar[str] = "kuberay"
    shared: ClassVar[bool] = False

    image: str = ""
    python: str = "python"
    code: Literal["snapshot", "image"] = "snapshot"
    namespace: str = ""
    context: str = ""
    queue: str = ""
    wait: int = 60
    retries: int = 2
    keep: int = 0
    cpus: int = 0
    memory: int = 0
    head_cpus: int = 4
    head_memory: int = 16
    volumes: Mapping[str, str] = field(default_factory=dict)
    secrets: tuple[str, ...] = ()
    pull_secrets: tuple[str, ...] = ()
    service_account: str = ""
    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: tuple[str, ...] = ()
    resources: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    redis: str = ""
    redis_password: str = ""
    head_storage: str = ""

    def joins(self, job: Job) -> bool:
        """Always: the operator makes the cluster."""
        return True

    def render(self, job: Job) -> dict[str, str]:
        """The RayJob and its ConfigMap, to which `submit` adds the code.

        Raises:
            ValueError: a field of the job or of the site that Kubernetes or the operator would refuse.
        """
        return {"rayjob.yaml": yaml.dump_all(self._documents(job), Dumper=_Plain, sort_keys=False, width=120)}

    def check(self, job: Job) -> None:
        """Let the API server check what would be created, against its schemas and our rights."""
        if shutil.which("kubectl") is None:
            raise ValueError("there is no kubectl on the PATH: install it, or submit from a machine that has it")
        for document in self._documents(job):
            self._kubectl("create", "--dry-run=server", "-f", "-", given=document)

    def submit(self, job: Job) -> str:
        """Create both; returns NAMESPACE/NAME@CONTEXT. ValueError: neither is there."""
        rayjob, settings = self._documents(job)
        if self.code == "snapshot":
            settings["binaryData"] = {"code.zip": base64.b64encode(self._code(job, settings["data"])).decode()}
        context = self.context or self._kubectl("config", "view", "-o", "jsonpath={.current-context}").decode()
        made = {}
        try:
            made = json.loads(self._kubectl("create", "-f", "-", "-o", "json", given=rayjob))
            owner = {key: rayjob[key] for key in ("apiVersion", "kind")}
            owner |= {key: made["metadata"][key] for key in ("name", "uid")}
            settings["metadata"]["ownerReferences"] = [owner]  # whoever deletes the one deletes the other
            self._kubectl("create", "-f", "-", given=settings)
        except BaseException as error:
            if made or "AlreadyExists" not in str(error):  # a request that timed out may have been heard
                self._undo(job, error)
            raise
        return f"{made['metadata']['namespace']}/{job.name}@{context}"

    def state(self, job: Job, there: str) -> State:
        """What the operator says of it; of one that waits, what its pods wait for."""
        told = self._at(there)._get("rayjobs.ray.io", job.name)
        if not told:
            return State(name="lost", why=f"there is no rayjob {there}: it was deleted")
        state = _state(told, job, self.queue)
        cluster = told.get("status", {}).get("rayClusterName")
        if state.name == "waiting" and cluster:
            pods = self._at(there)._get("pods", "-l", f"ray.io/cluster={cluster}")
            state = replace(state, why=f"{state.why}{_trouble(pods.get('items', []))}")
        return state

    def log(self, job: Job, there: str, seen: int) -> bytes:
        """What the submitter's pod printed, which follows the command's output; a retry begins anew."""
        try:
            said = self._at(there)._kubectl("logs", f"job/{job.name}", "-c", _SUBMITTER, "--pod-running-timeout=1s")
        except ValueError as error:
            if re.search(r"NotFound|waiting to start|timed out waiting|is terminated|PodInitializing", str(error)):
                return b""  # there is no pod yet, or no more
            raise
        return said[seen:]

    def stop(self, job: Job, there: str) -> None:
        """Delete the RayJob, and so all it made."""
        self._at(there)._delete(job)

    def _documents(self, job: Job) -> tuple[dict[str, Any], dict[str, Any]]:
        environment = dict(network.environment(job, self))
        if (self.redis or self.head_storage) and _RECONNECT not in {**self.environment, **job.environment}:
            environment.pop(_RECONNECT, None)  # workers wait for a head that comes back; the operator says how long
        job = replace(job, environment=environment).checked()
        self._checked()
        rayjob = self._rayjob(job)
        if broken := kuberay_rules.broken(rayjob):
            raise ValueError(f"job {job.name} as a RayJob: {'; '.join(broken)}")
        return rayjob, self._object("v1", "ConfigMap", job) | {"immutable": True, "data": {"run.sh": self._script(job)}}

    def _checked(self) -> None:
        """ValueError for a field that no manifest can hold."""
        if not self.image:
            raise ValueError("a kuberay site needs image = the name of one that has our dependencies: see Dockerfile")
        if not _IMAGE.fullmatch(self.image):
            raise ValueError(f"image = {self.image!r} must be the name of an image, [HOST/]NAME[:TAG][@DIGEST]")
        places = [place.rstrip("/") for place in self.volumes.values()]
        if not any(f"{self.root}/".startswith(f"{place}/") for place in places):
            raise ValueError(
                f"root = {self.root!r} must be a folder on one of the site's volumes ({', '.join(places) or 'none'}): "
                "what a job writes elsewhere is gone with its pod"
            )
        if self.redis and self.head_storage:
            raise ValueError("redis and head_storage both keep the head's state: say one of them")
        if self.redis and not _ADDRESS.fullmatch(self.redis):
            raise ValueError(f"redis = {self.redis!r} must be host:port; its password is redis_password = SECRET/KEY")
        if self.redis_password and not (self.redis and re.fullmatch(r"[a-z0-9.-]+/[\w.-]+", self.redis_password)):
            raise ValueError(f"redis_password = {self.redis_password!r} must be SECRET/KEY, beside redis")
        for name in ("wait", "retries", "keep", "cpus", "memory"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} = {getattr(self, name)} must be 0 or more")
        for name in ("head_cpus", "head_memory"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)} must be 1 or more")
        named = {
            "namespace": (self.namespace,) if self.namespace else (),
            "service_account": (self.service_account,) if self.service_account else (),
            **{name: getattr(self, name) for name in ("volumes", "secrets", "pull_secrets")},
        }
        for name, texts in named.items():
            for text in texts:
                if not kuberay_rules.is_name(text):
                    raise ValueError(f"{name} names {text!r}: use lower case letters, digits, '-' and '.' inside")
        for key, value in self.node_selector.items():
            if not kuberay_rules.is_label(key, value):
                raise ValueError(f"node_selector {key} = {value!r} is no label of a node")
        for key in (*self.annotations, *self.resources):
            if not kuberay_rules.is_label(key, ""):
                raise ValueError(f"{key!r} is no key of an annotation or a resource: use letters, as in rdma/hca")
        for name, value in {**self.resources, "head_storage": self.head_storage or "1Gi"}.items():
            if not _QUANTITY.fullmatch(value):
                raise ValueError(f"{name} = {value!r} must be a quantity, as 8 or 1Gi")
        for text in self.tolerations:
            if not _TOLERATION.fullmatch(text):
                raise ValueError(f"tolerations names {text!r}: use key or key=value, and :NoSchedule after it")

    def _object(self, api: str, kind: str, job: Job) -> dict[str, Any]:
        metadata: dict[str, Any] = {"name": job.name, **({"namespace": self.namespace} if self.namespace else {})}
        metadata["labels"] = {"app.kubernetes.io/managed-by": "interlace"}
        return {"apiVersion": api, "kind": kind, "metadata": metadata}

    def _rayjob(self, job: Job) -> dict[str, Any]:
        rayjob = self._object("ray.io/v1", "RayJob", job)
        if self.queue:
            rayjob["metadata"]["labels"][kuberay_rules.QUEUE] = self.queue
        rayjob["spec"] = {
            "entrypoint": f"bash {kuberay_rules.SETTINGS_AT}/run.sh",
            "submissionMode": _MODE,
            "submitterPodTemplate": {"spec": self._submitter()},
            "suspend": bool(self.queue),
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": self.keep,
            "backoffLimit": self.retries,
            **({"activeDeadlineSeconds": (self.wait + job.minutes) * 60} if self.wait and job.minutes else {}),
            **({"preRunningDeadlineSeconds": self.wait * 60} if self.wait else {}),
            "rayClusterSpec": self._cluster(job),
        }
        return rayjob

    def _cluster(self, job: Job) -> dict[str, Any]:
        alone = job.nodes == 1
        # Not loopback: the operator and the submitter ask the dashboard from their own pods. It wants the token, and
        # its Service has an address in the cluster's network only, no ingress.
        started = {"dashboard-host": "0.0.0.0", **({} if alone else {"num-cpus": "0"})}
        cluster: dict[str, Any] = {
            "rayVersion": version("ray"),
            "authOptions": {"mode": "token"},
            "enableInTreeAutoscaling": False,
            **self._memory_of_the_head(),
            "headGroupSpec": {
                "serviceType": "ClusterIP",
                "enableIngress": False,
                "rayStartParams": started,
                "template": self._pod(job, "ray-head", takes_part=alone),
            },
        }
        if not alone:
            size = dict.fromkeys(("replicas", "minReplicas", "maxReplicas"), job.nodes)
            workers = {"rayStartParams": {}, "template": self._pod(job, "ray-worker", takes_part=True)}
            cluster["workerGroupSpecs"] = [{"groupName": "nodes", **size, **workers}]
        return cluster

    def _memory_of_the_head(self) -> dict[str, Any]:
        """Where what the head knows outlives it: a job's end is told, and its nodes wait for a new head."""
        if self.head_storage:
            return {"gcsFaultToleranceOptions": {"backend": "rocksdb", "storage": {"size": self.head_storage}}}
        if not self.redis:
            return {}
        secret, _, key = self.redis_password.partition("/")
        password = {"redisPassword": {"valueFrom": {"secretKeyRef": {"name": secret, "key": key}}}} if secret else {}
        return {"gcsFaultToleranceOptions": {"backend": "redis", "redisAddress": self.redis, **password}}

    def _pod(self, job: Job, name: str, *, takes_part: bool) -> dict[str, Any]:
        """The template of a node of the job, or of a head beside them; the operator takes its container for Ray's."""
        memory = (job.memory or self.memory) if takes_part else self.head_memory
        cpus = (job.cpus or self.cpus) if takes_part else self.head_cpus
        had = {
            **({"cpu": str(cpus)} if cpus else {}),
            **({"memory": f"{memory}G"} if memory else {}),
            **({"nvidia.com/gpu": str(job.gpus)} if takes_part and job.gpus else {}),
            **(self.resources if takes_part else {}),
        }
        head = name == "ray-head"
        shared = {"medium": "Memory", **({"sizeLimit": f"{memory}G"} if memory else {})}  # counted as the pod's memory
        volumes: list[dict[str, Any]] = [{"name": "shared-memory", "emptyDir": shared}]
        mounts: list[dict[str, Any]] = [{"name": "shared-memory", "mountPath": "/dev/shm"}]  # else 64 MB: NCCL, loaders
        if head:
            volumes.append({"name": "settings", "configMap": {"name": job.name}})
            mounts.append({"name": "settings", "mountPath": kuberay_rules.SETTINGS_AT, "readOnly": True})
        for number, (claim, place) in enumerate(self.volumes.items()):
            volumes.append({"name": f"volume-{number}", "persistentVolumeClaim": {"claimName": claim}})
            mounts.append({"name": f"volume-{number}", "mountPath": place})
        ports = [{"name": "gcs-server", "containerPort": 6379}, {"name": "dashboard", "containerPort": 8265}]
        container = {
            "name": name,
            "image": self.image,
            **({"ports": ports} if head else {}),
            # The kubelet replaces $(NAME) in a value, and $$ by $
            "env": [{"name": key, "value": value.replace("$", "$$")} for key, value in job.environment.items()],
            **({"envFrom": [{"secretRef": {"name": secret}} for secret in self.secrets]} if self.secrets else {}),
            "resources": {"requests": dict(had), "limits": dict(had)},
            "securityContext": {"allowPrivilegeEscalation": False},
            "volumeMounts": mounts,
        }
        spec = {**self._where(takes_part=takes_part), "containers": [container], "volumes": volumes}
        marks = {"metadata": {"annotations": dict(self.annotations)}} if takes_part and self.annotations else {}
        return {**marks, "spec": spec}

    def _submitter(self) -> dict[str, Any]:
        """The operator's own template, and what it lacks: secrets to pull the image with, tolerations, an account."""
        had = {"requests": {"cpu": "500m", "memory": "1G"}, "limits": {"cpu": "1", "memory": "1G"}}
        container = {"name": _SUBMITTER, "image": self.image, "resources": had}
        return {**self._where(takes_part=False), "containers": [container]}

    def _where(self, *, takes_part: bool) -> dict[str, Any]:
        tolerations = []
        for text in self.tolerations:
            found = _TOLERATION.fullmatch(text)
            assert found, "checked"
            key, value, effect = found.groups()
            match = {"operator": "Exists"} if value is None else {"operator": "Equal", "value": value}
            tolerations.append({"key": key, **match, **({"effect": effect} if effect else {})})
        return {
            "restartPolicy": "Never",  # a pod that ended is made again, perhaps on a machine that works
            "automountServiceAccountToken": bool(self.service_account),
            **({"serviceAccountName": self.service_account} if self.service_account else {}),
            **({"imagePullSecrets": [{"name": name} for name in self.pull_secrets]} if self.pull_secrets else {}),
            **({"nodeSelector": dict(self.node_selector)} if takes_part and self.node_selector else {}),
            **({"tolerations": tolerations} if tolerations else {}),
        }

    def _script(self, job: Job) -> str:
        """What the head runs. Workers get the code from the command, by Ray's own working_dir."""
        place = shlex.quote(f"/tmp/interlace/{job.name}/code" if self.code == "snapshot" else IMAGE_CODE)
        unpack = f"{shlex.quote(self.python)} -m zipfile -e {kuberay_rules.SETTINGS_AT}/code.zip {place}\n"
        return (
            "set -e\n"
            + (unpack if self.code == "snapshot" else "")
            + f"cd {place}\n"
            + f"export PYTHONPATH={place}${{PYTHONPATH:+:$PYTHONPATH}}\n"
            + f"exec {shlex.join(_ended_in_time(job))}\n"
        )

    def _code(self, job: Job, beside: Mapping[str, str]) -> bytes:
        code = snapshot.archive(job.code)
        room = _LARGEST - sum(len(text.encode()) for text in beside.values())
        if len(code) > room:
            raise ValueError(
                f"the code has {len(code):,} bytes as a zip, and a ConfigMap takes {room:,}: leave out what is none, "
                'or build it into the image and say code = "image"'
            )
        return code

    def _at(self, there: str) -> KubeRay:
        """This site where a job of it is, wherever kubectl points now."""
        place, _, context = there.partition("@")
        return replace(self, namespace=place.partition("/")[0], context=context)

    def _get(self, *words: str) -> dict[str, Any]:
        """An object of the namespace as JSON, {} where it is not there."""
        return json.loads(self._kubectl("get", *words, "--ignore-not-found", "-o", "json") or "{}")

    def _delete(self, job: Job) -> None:
        self._kubectl("delete", "rayjobs.ray.io", job.name, "--ignore-not-found", "--wait=false")

    def _undo(self, job: Job, error: BaseException) -> None:
        try:
            self._delete(job)
        except ValueError as failed:
            raise ValueError(f"{error}; rayjob {job.name} may be there: delete it, for here {failed}") from None

    def _kubectl(self, *words: str, given: Mapping[str, Any] | None = None) -> bytes:
        """What kubectl answers. ValueError in one line where it fails."""
        place = [f"--{name}={getattr(self, name)}" for name in ("context", "namespace") if getattr(self, name)]
        command = ["kubectl", f"--request-timeout={_PATIENCE}s", *place, *words]
        text = b"" if given is None else json.dumps(given).encode()
        try:
            done = subprocess.run(command, input=text, capture_output=True, timeout=3 * _PATIENCE, check=False)
        except FileNotFoundError:
            raise ValueError("there is no kubectl on the PATH: install it, or ask from a machine that has it") from None
        except subprocess.TimeoutExpired:
            raise ValueError(f"kubectl {words[0]} does not answer: ask `kubectl cluster-info`") from None
        if done.returncode:
            lines = [_ADVICE.sub("", line).strip() for line in done.stderr.decode(errors="replace").splitlines()]
            said = " ".join(line for line in lines if line and not _NOISE.match(line))
            cure = next((cure for pattern, cure in _CURES if re.search(pattern, said)), "")
            raise ValueError(f"kubectl {words[0]}: {_line(said)}{cure and f'; {cure}'}")
        return done.stdout


def _ended_in_time(job: Job) -> tuple[str, ...]:
    """The command under coreutils' timeout: told to leave by SIGUSR1 before its time is over, killed when it is.

    The RayJob's own deadline counts the minutes that its pods take to come, too, and kills without a word.
    """
    if not job.minutes:
        return job.command
    leaves = min(_LEAVES, 30 * job.minutes)
    told = (f"--kill-after={leaves}", "--signal=USR1", "--preserve-status", "--foreground")
    return ("timeout", *told, str(60 * job.minutes - leaves), *job.command)


def _state(told: Mapping[str, Any], job: Job, queue: str) -> State:
    """The operator's words as ours."""
    status = told.get("status", {})
    phase, command = status.get("jobDeploymentStatus", ""), status.get("jobStatus", "")
    why = _line(": ".join(filter(None, (status.get("reason"), status.get("message")))))
    if "deletionTimestamp" in told["metadata"]:
        return State(name="running", why="it is being deleted")
    if phase == "Complete":
        return State(name="done", code=0) if command == "SUCCEEDED" else State(name="stopped", why=why)
    if phase == "ValidationFailed":
        return State(name="failed", why=f"the operator refused it: {why}")
    if phase == "Failed":
        return _failed(status, why)
    if phase in ("Suspending", "Suspended") or (not phase and told["spec"].get("suspend")):
        return State(name="waiting", why=f"for Kueue to admit all of its {job.nodes} nodes to queue {queue} at once")
    if phase == "Retrying":
        return State(name="waiting", why=f"for a new cluster: {why or 'the last one failed'}")
    if phase == "Running" and command == "RUNNING":
        return State(name="running", why=f"try {status['failed'] + 1}" if status.get("failed") else "")
    if phase == "Running":
        return State(name="waiting", why="for the head to start the command")
    if phase == "Initializing":
        cluster = status.get("rayClusterStatus", {})
        ready, wanted = cluster.get("readyWorkerReplicas", 0), cluster.get("desiredWorkerReplicas", 0)
        return State(name="waiting", why=f"for its pods, {ready} of {wanted} workers are ready")
    return State(name="waiting", why="for the KubeRay operator to look at it" if not phase else f"it is {phase}")


def _failed(status: Mapping[str, Any], why: str) -> State:
    message = status.get("message", "")
    found = re.search(r"failed with exit code (-?[0-9]+)", message)
    if found is None:
        return State(name="failed", why=why)
    code = int(found[1]) if int(found[1]) >= 0 else 128 - int(found[1])
    meant = {LEFT: "its minutes were over: submit it again to go on", LOST: "it lost a node, once more than it may"}
    last = next((line for line in reversed(message.splitlines()[1:]) if line.strip()), "")
    return State(name="failed", why=meant.get(code, _line(last)), code=code)


def _trouble(pods: list[Mapping[str, Any]]) -> str:
    """What keeps one of these pods from running, "" if nothing is said."""
    for pod in pods:
        status = pod.get("status", {})
        said = [
            f"{each.get('reason', 'it cannot be placed')}: {each.get('message', '')}"
            for each in status.get("conditions", [])
            if each["type"] == "PodScheduled" and each["status"] == "False"
        ]
        for each in (*status.get("initContainerStatuses", []), *status.get("containerStatuses", [])):
            waits = each.get("state", {}).get("waiting", {})
            ended = each.get("state", {}).get("terminated") or each.get("lastState", {}).get("terminated") or {}
            if waits.get("reason", "PodInitializing") not in ("PodInitializing", "ContainerCreating"):
                said.append(f"{waits['reason']}: {waits.get('message', '')}")
            if ended.get("exitCode"):
                said.append(f"{each['name']} ended with exit code {ended['exitCode']}")
        if said:
            return f"; {pod['metadata']['name']}: {_line(said[0])}"
    return ""


def _line(text: str) -> str:
    """One line of at most 300 letters."""
    flat = " ".join(text.split())
    return flat if len(flat) <= 300 else f"{flat[:297]}..."


class _Plain(yaml.SafeDumper):
    """YAML whose texts are texts for every reader, older and newer ones: quoted unless they are plain words."""

    def ignore_aliases(self, data: object) -> bool:
        return True

    def represent_text(self, text: str) -> yaml.Node:
        plain = re.fullmatch(r"[A-Za-z/][A-Za-z0-9./_-]{2,}", text)  # else y, 0o7 or 1_0 are something else somewhere
        style = "|" if text.endswith("\n") else None if plain else '"'
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Plain.add_representer(str, _Plain.represent_text)
