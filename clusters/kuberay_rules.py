"""What the KubeRay operator 1.7 refuses though its schema takes it, as far as our manifests and sites can break it.

Its webhook is optional: without these checks a broken RayJob is created, and its status says so minutes later.
Source: ray-operator/controllers/ray/utils/validation.go and common/pod.go of ray-project/kuberay, in our own words.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

QUEUE = "kueue.x-k8s.io/queue-name"  # the label by which Kueue takes all pods of a RayJob in at once, or none
SETTINGS_AT = "/etc/interlace"

_NAME = re.compile(r"[a-z]([a-z0-9-]{0,45}[a-z0-9])?")  # a cluster's name is this and six letters, 53 at most
_DOMAIN = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")  # of objects: DNS-1123 subdomains
_LABEL = re.compile(r"([A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?")  # a label's value, and the name in its key
_VERSION = re.compile(r"(\d+)\.(\d+)(\.\d+)?.*")
_OLDEST_WITH_TOKENS = (2, 52)  # of Ray
_COUNTED = ("num-cpus", "num-gpus", "memory", "resources")  # flags of `ray start` that say what a node has

_THE_OPERATORS = {  # variables that it sets itself: a second value of one is read by chance, or opens the cluster
    "RAY_AUTH_MODE": "the cluster asks for its token",
    "RAY_AUTH_TOKEN": "the token comes from a Secret of the cluster",
    "RAY_ENABLE_K8S_TOKEN_AUTH": "a RayJob has no such authentication",
    "RAY_CLUSTER_NAME": "it is the cluster's name",
    "RAY_CLUSTER_NAMESPACE": "it is the cluster's namespace",
    "RAY_CLOUD_INSTANCE_ID": "it is the pod's name",
    "RAY_NODE_TYPE_NAME": "it is the pod's group",
    "RAY_ADDRESS": "it leads to the job's own cluster",
    "RAY_PORT": "it leads to the job's own cluster",
    "RAY_IP": "it leads to the job's own cluster",
    "FQ_RAY_IP": "it leads to the job's own cluster",
    "KUBERAY_GEN_RAY_START_CMD": "it is how a pod starts",
    "RAY_REDIS_ADDRESS": "say redis in the site file",
    "REDIS_USERNAME": "say redis in the site file",
    "REDIS_PASSWORD": "say redis_password in the site file",
    "RAY_external_storage_namespace": "it tells clusters that share a Redis apart",
    "RAY_gcs_storage": "say head_storage in the site file",
    "RAY_gcs_storage_path": "say head_storage in the site file",
}
_THE_OPERATORS_PLACES = {  # mounts that it makes itself
    "/data/gcs": "the head's state lies there",
    "/etc/ray/tls": "certificates lie there",
    "/var/run/secrets/ray.io/serviceaccount": "tokens lie there",
}


def broken(rayjob: Mapping[str, Any]) -> list[str]:
    """What the operator would refuse in a RayJob manifest, or take and get wrong: each as value and rule, or none."""
    spec = rayjob["spec"]
    metadata = rayjob["metadata"]
    cluster = spec.get("rayClusterSpec")
    found = [*_names(metadata), *_life(spec), *_gang(metadata, spec)]
    if cluster is None:
        return [*found, "there is no rayClusterSpec: the job has no cluster"]
    return [*found, *_submission(spec, cluster), *_groups(cluster), *_token(cluster), *_head(metadata, cluster)]


def is_name(text: str) -> bool:
    """Whether a claim, a Secret, a service account or a namespace can have this name."""
    return bool(_DOMAIN.fullmatch(text))


def is_label(key: str, value: str) -> bool:
    """Whether nodes and pods can be told by this pair."""
    domain, slash, name = key.rpartition("/")
    return bool(name and _LABEL.fullmatch(name) and _LABEL.fullmatch(value)) and (not slash or is_name(domain))


def _names(metadata: Mapping[str, Any]) -> Iterator[str]:
    if not _NAME.fullmatch(metadata["name"]):
        yield f"name {metadata['name']!r} must be lower case letters, digits and '-' inside, 47 at most"
    for key, value in metadata.get("labels", {}).items():
        if not is_label(key, value):
            yield f"label {key}={value!r} must be letters, digits, '-', '_' and '.' inside, 63 at most"


def _life(spec: Mapping[str, Any]) -> Iterator[str]:
    """How long it lives, how often it is tried."""
    if spec.get("ttlSecondsAfterFinished", 0) < 0:
        yield f"ttlSecondsAfterFinished {spec['ttlSecondsAfterFinished']} must be 0 or more"
    if spec.get("ttlSecondsAfterFinished", 0) > 0 and not spec.get("shutdownAfterJobFinishes"):
        yield "ttlSecondsAfterFinished needs shutdownAfterJobFinishes: nothing ends the cluster otherwise"
    if spec.get("backoffLimit", 0) < 0:
        yield f"backoffLimit {spec['backoffLimit']} must be 0 or more"
    for field in ("activeDeadlineSeconds", "preRunningDeadlineSeconds"):
        if not 0 < spec.get(field, 1) < 2**31:
            yield f"{field} {spec[field]} must be a positive number of 31 bits: leave it out for no deadline"


def _gang(metadata: Mapping[str, Any], spec: Mapping[str, Any]) -> Iterator[str]:
    """All pods or none: Kueue lets a suspended RayJob go once its whole cluster fits the queue's quota."""
    if spec.get("suspend") and not spec.get("shutdownAfterJobFinishes"):
        yield "suspend needs shutdownAfterJobFinishes: a suspended cluster is made anew"
    if spec.get("suspend") and QUEUE not in metadata.get("labels", {}):
        yield f"suspend without the label {QUEUE}: nobody would let it go"
    if QUEUE in metadata.get("labels", {}):
        if not spec.get("suspend"):
            yield f"the label {QUEUE} without suspend: pods would come before Kueue was asked"
        if (spec.get("rayClusterSpec") or {}).get("enableInTreeAutoscaling"):
            yield f"the label {QUEUE} with enableInTreeAutoscaling: Kueue takes clusters of a fixed size"


def _submission(spec: Mapping[str, Any], cluster: Mapping[str, Any]) -> Iterator[str]:
    mode = spec.get("submissionMode", "K8sJobMode")
    template = cluster["headGroupSpec"]["template"]["spec"]
    if mode == "SidecarMode":
        for field in ("submitterPodTemplate", "submitterConfig"):
            if field in spec:
                yield f"SidecarMode with {field}: its submitter is a container of the head"
        if template.get("restartPolicy", "Never") != "Never":
            yield f"SidecarMode with a head of restartPolicy {template['restartPolicy']}: it must be Never"
        if "gcsFaultToleranceOptions" in cluster:
            yield "SidecarMode with gcsFaultToleranceOptions: its head is never made again"
    if mode == "InteractiveMode" and spec.get("backoffLimit", 0) > 0:
        yield "InteractiveMode with backoffLimit: nobody would submit again"
    if mode == "K8sJobMode":
        submitter = spec.get("submitterPodTemplate", {}).get("spec", {})
        if submitter.get("restartPolicy", "Never") not in ("Never", "OnFailure"):
            yield f"a submitter of restartPolicy {submitter['restartPolicy']}: it must be Never or OnFailure"


def _groups(cluster: Mapping[str, Any]) -> Iterator[str]:
    autoscaled = cluster.get("enableInTreeAutoscaling", False)
    workers = cluster.get("workerGroupSpecs", [])
    for name, group in [("head", cluster["headGroupSpec"]), *((each["groupName"], each) for each in workers)]:
        started = group.get("rayStartParams", {})
        if group.get("resources") and any(flag in started for flag in _COUNTED):
            yield f"{name}: what it has is said twice, by rayStartParams and by resources"
        if "labels" in started:
            yield f"{name}: rayStartParams labels must be said as the group's labels"
        for key, value in group.get("labels", {}).items():
            if not is_label(key, value):
                yield f"{name}: label {key}={value!r} must be letters, digits, '-', '_' and '.' inside, 63 at most"
        yield from _pod(name, group["template"]["spec"], autoscaled)
    for group in workers:
        least, most, wanted = (group.get(field) for field in ("minReplicas", "maxReplicas", "replicas"))
        if least is None or most is None:
            if not autoscaled:
                yield f"{group['groupName']}: minReplicas and maxReplicas must be said of a cluster of a fixed size"
        elif not 0 <= least <= (least if wanted is None else wanted) <= most:
            yield f"{group['groupName']}: replicas {wanted} must lie between {least} and {most}, and none under 0"


def _pod(name: str, pod: Mapping[str, Any], autoscaled: bool) -> Iterator[str]:
    if not pod.get("containers"):
        yield f"{name}: there is no container"
        return
    container = pod["containers"][0]  # the operator takes the first for Ray's
    variables = {each["name"]: each.get("value", "") for each in container.get("env", [])}
    for variable in variables:
        if variable in _THE_OPERATORS:
            yield f"{name}: {variable} must not be set, {_THE_OPERATORS[variable]}"
    if variables.get("RAY_enable_autoscaler_v2") in ("1", "true") and not autoscaled:
        yield f"{name}: RAY_enable_autoscaler_v2 must not be set, the cluster has a fixed size"
    if len(variables) != len(container.get("env", [])):
        yield f"{name}: a variable is set twice"
    yield from _mounts(name, container.get("volumeMounts", []), [each["name"] for each in pod.get("volumes", [])])


def _mounts(name: str, mounts: Sequence[Mapping[str, Any]], volumes: Sequence[str]) -> Iterator[str]:
    places = [each["mountPath"] for each in mounts]
    for place in sorted({place for place in places if places.count(place) > 1}):
        yield f"{name}: {place} is mounted twice"
    for place in places:
        if not place.startswith("/") or ":" in place or place.rstrip("/") == "":
            yield f"{name}: {place!r} must be an absolute path under / and without ':'"
        if place.rstrip("/") in _THE_OPERATORS_PLACES:
            yield f"{name}: {place} must not be mounted, {_THE_OPERATORS_PLACES[place.rstrip('/')]}"
    for volume in sorted({each["name"] for each in mounts} ^ set(volumes)):
        yield f"{name}: volume {volume} is mounted and not there, or there and not mounted"


def _token(cluster: Mapping[str, Any]) -> Iterator[str]:
    options = cluster.get("authOptions", {})
    if options.get("mode") != "token":
        yield "authOptions.mode must be token: whoever reaches the head's port could run anything"
    if options.get("enableK8sTokenAuth"):
        yield "authOptions.enableK8sTokenAuth must not be set: a RayJob has no such authentication"
    version = _VERSION.fullmatch(cluster.get("rayVersion", ""))
    if version is None:
        yield f"rayVersion {cluster.get('rayVersion', '')!r} must be a version: tokens depend on it"
    elif (int(version[1]), int(version[2])) < _OLDEST_WITH_TOKENS:
        yield f"rayVersion {version[0]} must be 2.52 or later: earlier ones have no tokens"


def _head(metadata: Mapping[str, Any], cluster: Mapping[str, Any]) -> Iterator[str]:
    """A head whose state outlives it."""
    options = cluster.get("gcsFaultToleranceOptions")
    marks = metadata.get("annotations", {})
    started = cluster["headGroupSpec"].get("rayStartParams", {})
    if "redis-username" in started or (options is not None and "redis-password" in started):
        yield "rayStartParams must not name redis: gcsFaultToleranceOptions does"
    if options is None:
        return
    for mark in ("ray.io/ft-enabled", "ray.io/external-storage-namespace"):
        if marks.get(mark):
            yield f"annotation {mark} must not be set: gcsFaultToleranceOptions says it"
    storage = options.get("storage")
    if options.get("backend", "redis") == "redis":
        if storage is not None:
            yield "gcsFaultToleranceOptions.storage must not be set: Redis stores elsewhere"
        if not options.get("redisAddress"):
            yield "gcsFaultToleranceOptions.redisAddress must be set: there is no Redis otherwise"
        if "value" in options.get("redisPassword", {}):
            yield "gcsFaultToleranceOptions.redisPassword must be a reference to a Secret: others read the manifest"
        return
    for field in ("redisAddress", "redisUsername", "redisPassword", "externalStorageNamespace"):
        if field in options:
            yield f"gcsFaultToleranceOptions.{field} must not be set: the state is stored with the head"
    if storage and storage.get("claimName") and {"size", "storageClassName", "accessModes"} & set(storage):
        yield "gcsFaultToleranceOptions.storage must name a claim or describe one, not both"
