"""A job on Kubernetes: the operator's schema and rules, real kubectl against a small API server, the head's script."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import crd
import kube_api
import pytest
import yaml
from packaging.requirements import Requirement

from clusters import kuberay, kuberay_rules, sites
from clusters.job import Job, State
from clusters.kuberay import KubeRay

HOUSE = Path(__file__).resolve().parents[2]
SITE = KubeRay(image="interlace:0.1", root="/shared/runs", volumes={"shared": "/shared"})
FULL = replace(
    SITE,
    namespace="lab",
    queue="training",
    secrets=("huggingface",),
    pull_secrets=("registry",),
    service_account="trainer",
    node_selector={"gpu": "h200"},
    tolerations=("nvidia.com/gpu:NoSchedule", "pool=training", "spot"),
    resources={"rdma/hca": "8"},
    annotations={"k8s.v1.cni.cncf.io/networks": "ib0, ib1"},
    redis="redis.lab:6379",
    redis_password="redis/password",
)


def _job(**fields: Any) -> Job:
    desk = Path("/runs/jobs/train-1")
    made = {"name": "train-1", "command": ("python", "-m", "pipelines", "train", "metamorph:tiny"), "desk": desk}
    return Job(**{**made, "folder": desk / "code", "code": desk / "code", "nodes": 4, "gpus": 8, **fields})


def _rendered(site: KubeRay, job: Job) -> tuple[dict[str, Any], dict[str, Any]]:
    rayjob, settings = yaml.safe_load_all(site.render(job)["rayjob.yaml"])
    return rayjob, settings


def _containers(rayjob: dict[str, Any]) -> dict[str, dict[str, Any]]:
    cluster = rayjob["spec"]["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster.get("workerGroupSpecs", [])]
    return {each["name"]: each for group in groups for each in group["template"]["spec"]["containers"]}


def _values(told: Any) -> Iterator[Any]:
    """All leaves of a manifest."""
    if isinstance(told, dict):
        for inner in told.values():
            yield from _values(inner)
    elif isinstance(told, list):
        for inner in told:
            yield from _values(inner)
    else:
        yield told


# ---- What is rendered


def test_every_rank_has_a_node_and_the_head_is_none_of_them() -> None:
    rayjob, _ = _rendered(SITE, _job(memory=900, cpus=96))
    cluster = rayjob["spec"]["rayClusterSpec"]
    (group,) = cluster["workerGroupSpecs"]
    assert (group["replicas"], group["minReplicas"], group["maxReplicas"]) == (4, 4, 4)
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    containers = _containers(rayjob)
    assert containers["ray-worker"]["resources"]["limits"] == {"cpu": "96", "memory": "900G", "nvidia.com/gpu": "8"}
    assert "nvidia.com/gpu" not in containers["ray-head"]["resources"]["limits"]
    for each in containers.values():
        assert each["resources"]["requests"] == each["resources"]["limits"]
        assert {"name": "shared-memory", "mountPath": "/dev/shm"} in each["volumeMounts"]
    (shared, *_) = group["template"]["spec"]["volumes"]
    assert shared["emptyDir"] == {"medium": "Memory", "sizeLimit": "900G"}


def test_a_job_of_one_node_is_a_head_that_has_all_it_asks_for() -> None:
    rayjob, _ = _rendered(SITE, _job(nodes=1, gpus=2, cpus=8, memory=64))
    cluster = rayjob["spec"]["rayClusterSpec"]
    assert "workerGroupSpecs" not in cluster
    assert cluster["headGroupSpec"]["rayStartParams"] == {"dashboard-host": "0.0.0.0"}
    limits = _containers(rayjob)["ray-head"]["resources"]["limits"]
    assert limits == {"cpu": "8", "memory": "64G", "nvidia.com/gpu": "2"}


def test_a_gang_is_taken_in_by_kueue_whole_or_not_at_all() -> None:
    rayjob, _ = _rendered(FULL, _job())
    assert rayjob["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "training"
    assert rayjob["spec"]["suspend"] is True
    assert rayjob["spec"]["shutdownAfterJobFinishes"] is True
    assert _rendered(SITE, _job())[0]["spec"]["suspend"] is False


def test_time_limits_and_retries_are_the_jobs_and_the_sites() -> None:
    spec = _rendered(replace(SITE, wait=30, retries=5, keep=60), _job(minutes=600))[0]["spec"]
    assert spec["preRunningDeadlineSeconds"] == 30 * 60
    assert spec["activeDeadlineSeconds"] == 630 * 60  # the operator counts the pods' coming, too
    assert (spec["backoffLimit"], spec["ttlSecondsAfterFinished"]) == (5, 60)
    spec = _rendered(replace(SITE, wait=0), _job(minutes=600))[0]["spec"]
    assert "preRunningDeadlineSeconds" not in spec and "activeDeadlineSeconds" not in spec


def test_a_head_whose_state_outlives_it_has_workers_that_wait_for_it() -> None:
    rayjob, _ = _rendered(FULL, _job())
    told = {each["name"] for each in _containers(rayjob)["ray-worker"]["env"]}
    assert "RAY_gcs_rpc_server_reconnect_timeout_s" not in told and "RAY_health_check_period_ms" in told
    password = rayjob["spec"]["rayClusterSpec"]["gcsFaultToleranceOptions"]["redisPassword"]
    assert password == {"valueFrom": {"secretKeyRef": {"name": "redis", "key": "password"}}}
    said = _rendered(replace(FULL, environment={"RAY_gcs_rpc_server_reconnect_timeout_s": "90"}), _job())[0]
    assert {"name": "RAY_gcs_rpc_server_reconnect_timeout_s", "value": "90"} in _containers(said)["ray-worker"]["env"]
    stored = _rendered(replace(SITE, head_storage="2Gi"), _job())[0]["spec"]["rayClusterSpec"]
    assert stored["gcsFaultToleranceOptions"] == {"backend": "rocksdb", "storage": {"size": "2Gi"}}


def test_pods_have_no_rights_unless_the_site_gives_them_an_account() -> None:
    for site, had in ((SITE, False), (FULL, True)):
        rayjob, _ = _rendered(site, _job())
        pods = [rayjob["spec"]["submitterPodTemplate"]["spec"]]
        pods += [rayjob["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]]
        pods += [each["template"]["spec"] for each in rayjob["spec"]["rayClusterSpec"]["workerGroupSpecs"]]
        assert [pod["automountServiceAccountToken"] for pod in pods] == [had] * 3
        assert [pod.get("imagePullSecrets", []) for pod in pods] == [[{"name": "registry"}] if had else []] * 3


def test_texts_stay_texts_whatever_they_look_like() -> None:
    tricks = [
        "y",
        "no",
        "0o17",
        "1_0",
        "1e3",
        "~",
        "null",
        "2024-01-01",
        "- a: b",
        "!!python/name:os.system",
        "#",
        "*a",
    ]
    tricks += ["a: b", "{{ .Values }}", "'", '"', "\\n", "é☃", "=", "<<", "0x1f", "---", " padded "]
    environment = {f"TRICK_{number}": text for number, text in enumerate(tricks)}
    job = _job(environment=environment, command=("python", "-c", *tricks))
    text = SITE.render(job)["rayjob.yaml"]
    for loader in (yaml.SafeLoader, yaml.BaseLoader):  # the second takes every plain scalar for a text
        rayjob, _ = yaml.load_all(text, Loader=loader)
        for container in _containers(rayjob).values():
            told = {each["name"]: each["value"] for each in container["env"]}
            assert {name: told[name] for name in environment} == environment
    plain = set(re.findall(r"value: ([^\"'\s].*)", text))
    assert all(re.fullmatch(r"[A-Za-z/][A-Za-z0-9./_-]{2,}", each) for each in plain), plain


def _kubelet(text: str) -> str:
    """What a kubelet makes of a value, in a container where HOME is set."""
    return re.sub(r"\$(\$|\(HOME\))", lambda found: "$" if found[1] == "$" else "/root", text)


def test_a_value_with_dollars_reaches_the_command_as_it_was_written() -> None:
    for text in ("$(HOME)", "$$(HOME)", "$HOME", "a$", "$$$", "${HOME}"):
        rayjob, _ = _rendered(SITE, _job(environment={"WORD": text}))
        for container in _containers(rayjob).values():
            told = {each["name"]: each["value"] for each in container["env"]}
            assert _kubelet(told["WORD"]) == text


def test_the_head_runs_the_command_in_the_snapshot_with_its_words_intact(tmp_path: Path) -> None:
    words = ("$(id)", "`id`", "a b'c\"d", "*", "", "--set", "x=$HOME;rm", "é", "\\")
    code = (
        "import json, os, sys, here; "
        "print(json.dumps([sys.argv[1:], os.getcwd(), os.environ['PYTHONPATH'], here.WORD]))"
    )
    job = _job(command=(sys.executable, "-c", code, *words))
    script = _rendered(replace(SITE, python=sys.executable), job)[1]["data"]["run.sh"]
    with zipfile.ZipFile(tmp_path / "code.zip", "w") as packed:
        packed.writestr("here.py", "WORD = 'travelled'\n")
    script = script.replace("/etc/interlace", str(tmp_path)).replace("/tmp/interlace", str(tmp_path / "made"))
    (tmp_path / "run.sh").write_text(script)
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": "/later"}
    entrypoint = f"bash {tmp_path}/run.sh"
    done = subprocess.run(entrypoint, shell=True, env=environment, cwd="/", capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    there = str(tmp_path / "made" / "train-1" / "code")
    assert json.loads(done.stdout) == [list(words), there, f"{there}:/later", "travelled"]


def test_a_job_with_a_time_limit_is_told_to_leave_before_it_is_killed() -> None:
    line = _rendered(SITE, _job(minutes=60))[1]["data"]["run.sh"].splitlines()[-1]
    told = "exec timeout --kill-after=180 --signal=USR1 --preserve-status --foreground 3420 python -m pipelines"
    assert line.startswith(told)


def test_an_image_with_the_code_in_it_runs_that() -> None:
    script = _rendered(replace(SITE, code="image"), _job())[1]["data"]["run.sh"]
    assert f"cd {kuberay.IMAGE_CODE}\n" in script and "zip" not in script


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"image": ""}, "image"),
        ({"image": "a image"}, "image"),
        ({"root": ""}, "root"),
        ({"root": "/elsewhere"}, "on one of the site's volumes"),
        ({"root": "/shared-not"}, "on one of the site's volumes"),
        ({"volumes": {"Not_A_Claim": "/shared"}}, "volumes names"),
        ({"volumes": {"shared": "/shared", "other": "/shared"}}, "mounted twice"),
        ({"volumes": {"shared": "/shared", "other": "relative"}}, "absolute path"),
        ({"volumes": {"shared": "/shared", "other": "/dev/shm"}}, "mounted twice"),
        ({"volumes": {"shared": "/shared", "other": "/data/gcs"}}, "must not be mounted"),
        ({"secrets": ("a b",)}, "secrets names"),
        ({"pull_secrets": ("A",)}, "pull_secrets names"),
        ({"namespace": "a/b"}, "namespace names"),
        ({"service_account": "--x"}, "service_account names"),
        ({"queue": "a queue"}, "label"),
        ({"node_selector": {"gpu": "two words"}}, "node_selector"),
        ({"tolerations": ("gpu:Sometimes",)}, "tolerations names"),
        ({"annotations": {"a b": "x"}}, "no key"),
        ({"resources": {"rdma/hca": "many"}}, "quantity"),
        ({"retries": -1}, "retries"),
        ({"wait": -1}, "wait"),
        ({"keep": -1}, "keep"),
        ({"head_cpus": 0}, "head_cpus"),
        ({"redis": "redis"}, "host:port"),
        ({"redis": "redis://:word@redis:6379"}, "host:port"),
        ({"redis_password": "redis/password"}, "beside redis"),
        ({"redis": "redis:6379", "redis_password": "word"}, "SECRET/KEY"),
        ({"redis": "redis:6379", "head_storage": "1Gi"}, "say one of them"),
        ({"head_storage": "much"}, "quantity"),
        ({"environment": {"HF_TOKEN": "word"}}, "secret"),
        ({"environment": {"RAY_AUTH_MODE": "disabled"}}, "RAY_AUTH_MODE must not be set"),
        ({"environment": {"RAY_ADDRESS": "elsewhere:6379"}}, "RAY_ADDRESS must not be set"),
        ({"environment": {"RAY_enable_autoscaler_v2": "1"}}, "fixed size"),
        ({"environment": {"RAY_gcs_storage": "memory"}}, "head_storage"),
    ],
)
def test_a_site_that_no_cluster_takes_is_refused_in_one_line(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=re.escape(told)) as refused:
        replace(SITE, **fields).render(_job())
    assert "\n" not in str(refused.value)


# ---- The operator's schema, and what it refuses besides


@pytest.fixture(scope="session")
def schema() -> Path:
    place = crd.folder()
    if place is None:
        pytest.skip(crd.lacking())
    return place


SITES = {"plain": SITE, "full": FULL, "stored": replace(SITE, head_storage="1Gi", code="image")}
JOBS = {"gang": _job(), "one": _job(nodes=1), "build": _job(gpus=0, cpus=16, memory=64, minutes=90)}


@pytest.mark.parametrize("site", SITES.values(), ids=SITES)
@pytest.mark.parametrize("job", JOBS.values(), ids=JOBS)
def test_the_operators_schema_takes_what_is_rendered(site: KubeRay, job: Job, schema: Path) -> None:
    rayjob, settings = _rendered(site, job)
    assert crd.errors("RayJob", rayjob, schema) == []
    cluster = {"apiVersion": "ray.io/v1", "kind": "RayCluster", "metadata": {"name": "train-1-abcde"}}
    assert crd.errors("RayCluster", {**cluster, "spec": rayjob["spec"]["rayClusterSpec"]}, schema) == []
    assert set(settings) == {"apiVersion", "kind", "metadata", "immutable", "data"}


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        ("spec.entryPoint", "x", "entryPoint"),
        ("spec.backoffLimit", "2", "backoffLimit"),
        ("spec.backoffLimit", 2**31, "backoffLimit"),
        ("spec.suspend", "yes", "suspend"),
        ("spec.preRunningDeadlineSeconds", 0, "preRunningDeadlineSeconds"),
        ("spec.rayClusterSpec.authOptions.mode", "none", "mode"),
        ("spec.rayClusterSpec.headGroupSpec.rayStartParams.num-cpus", 0, "num-cpus"),
        ("spec.rayClusterSpec.headGroupSpec.template", None, "template"),
        ("spec.rayClusterSpec.workerGroupSpecs.0.replicas", 1.5, "replicas"),
        ("spec.rayClusterSpec.workerGroupSpecs.0.groupName", ..., "groupName"),
        (
            "spec.rayClusterSpec.workerGroupSpecs.0.template.spec.containers.0.resources.limits.memory",
            "64 GB",
            "memory",
        ),
        (
            "spec.rayClusterSpec.workerGroupSpecs.0.template.spec.containers.0.volumeMounts.0.mountpath",
            "/x",
            "mountpath",
        ),
        ("spec.rayClusterSpec.workerGroupSpecs.0.template.spec.containers.0.name", ..., "name"),
        ("spec.rayClusterSpec.gcsFaultToleranceOptions.redisPassword.valueFrom.secretKeyRef.key", ..., "key"),
        ("spec.rayClusterSpec.headGroupSpec.template.spec.containers.0.ports.1.containerPort", 6379, "twice"),
    ],
)
def test_the_operators_schema_finds_a_typo_and_a_wrong_type(path: str, value: Any, told: str, schema: Path) -> None:
    rayjob, _ = _rendered(FULL, _job())
    found = crd.errors("RayJob", _changed(rayjob, path, value), schema)
    assert any(told in each for each in found), found


def test_what_the_server_fills_in_is_not_missed(schema: Path) -> None:
    rayjob, _ = _rendered(FULL, _job())
    path = "spec.rayClusterSpec.workerGroupSpecs.0.maxReplicas"  # required, and has a default
    assert crd.errors("RayJob", _changed(rayjob, path, ...), schema) == []


def _changed(rayjob: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A manifest with a value put at a path, or taken away from there: ..."""
    made = json.loads(json.dumps(rayjob))
    *way, last = path.replace("\\.", "\0").split(".")
    place: Any = made
    for step in way:
        place = place[int(step)] if isinstance(place, list) else place.setdefault(step.replace("\0", "."), {})
    if value is ...:
        del place[last]
    else:
        place[last.replace("\0", ".")] = value
    return made


CLUSTER = "spec.rayClusterSpec"
HEAD = f"{CLUSTER}.headGroupSpec"
WORKERS = f"{CLUSTER}.workerGroupSpecs.0"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"metadata.name": "a" * 48}, "47 at most"),
        ({"metadata.name": "1-run"}, "47 at most"),
        ({"metadata.name": "Run"}, "47 at most"),
        ({"metadata.name": "run-"}, "47 at most"),
        ({"metadata.labels.kueue\\.x-k8s\\.io/queue-name": "a queue"}, "63 at most"),
        ({"spec.shutdownAfterJobFinishes": False}, "suspend needs shutdownAfterJobFinishes"),
        ({"spec.shutdownAfterJobFinishes": False, "spec.ttlSecondsAfterFinished": 5}, "ttlSecondsAfterFinished needs"),
        ({"spec.ttlSecondsAfterFinished": -1}, "0 or more"),
        ({"spec.backoffLimit": -1}, "0 or more"),
        ({"spec.activeDeadlineSeconds": 0}, "positive"),
        ({"spec.activeDeadlineSeconds": 2**31}, "31 bits"),
        ({"spec.preRunningDeadlineSeconds": -5}, "positive"),
        ({"spec.suspend": False}, "without suspend"),
        ({"metadata.labels": {}}, "nobody would let it go"),
        ({f"{CLUSTER}.enableInTreeAutoscaling": True}, "fixed size"),
        ({"spec.submissionMode": "SidecarMode"}, "SidecarMode with submitterPodTemplate"),
        ({"spec.submissionMode": "SidecarMode", "spec.submitterConfig": {}}, "SidecarMode with submitterConfig"),
        ({"spec.submissionMode": "SidecarMode", f"{HEAD}.template.spec.restartPolicy": "Always"}, "must be Never"),
        ({"spec.submissionMode": "SidecarMode"}, "never made again"),
        ({"spec.submissionMode": "InteractiveMode"}, "nobody would submit again"),
        ({"spec.submitterPodTemplate.spec.restartPolicy": "Always"}, "Never or OnFailure"),
        ({"spec.rayClusterSpec": ...}, "no rayClusterSpec"),
        ({f"{HEAD}.template.spec.containers": []}, "no container"),
        ({f"{HEAD}.resources": {"CPU": "0"}}, "said twice"),
        ({f"{HEAD}.rayStartParams.labels": "a=b"}, "group's labels"),
        ({f"{WORKERS}.labels": {"a b": "c"}}, "63 at most"),
        ({f"{WORKERS}.minReplicas": ...}, "minReplicas and maxReplicas"),
        ({f"{WORKERS}.minReplicas": 5}, "must lie between"),
        ({f"{WORKERS}.maxReplicas": 3}, "must lie between"),
        ({f"{WORKERS}.minReplicas": -1}, "none under 0"),
        ({f"{WORKERS}.template.spec.volumes": []}, "mounted and not there"),
        ({f"{WORKERS}.template.spec.containers.0.env": [{"name": "A"}, {"name": "A"}]}, "set twice"),
        ({f"{CLUSTER}.authOptions": {}}, "must be token"),
        ({f"{CLUSTER}.authOptions.mode": "disabled"}, "must be token"),
        ({f"{CLUSTER}.authOptions.enableK8sTokenAuth": True}, "no such authentication"),
        ({f"{CLUSTER}.rayVersion": "2.51.0"}, "2.52 or later"),
        ({f"{CLUSTER}.rayVersion": "nightly"}, "must be a version"),
        ({f"{CLUSTER}.rayVersion": ...}, "must be a version"),
        ({"metadata.annotations": {"ray.io/ft-enabled": "true"}}, "ray.io/ft-enabled"),
        ({f"{HEAD}.rayStartParams.redis-password": "$WORD"}, "rayStartParams must not name redis"),
        ({f"{CLUSTER}.gcsFaultToleranceOptions.redisPassword": {"value": "word"}}, "reference to a Secret"),
        ({f"{CLUSTER}.gcsFaultToleranceOptions.storage": {"size": "1Gi"}}, "stores elsewhere"),
        ({f"{CLUSTER}.gcsFaultToleranceOptions.redisAddress": ""}, "redisAddress must be set"),
        ({f"{CLUSTER}.gcsFaultToleranceOptions.backend": "rocksdb"}, "stored with the head"),
        (
            {f"{CLUSTER}.gcsFaultToleranceOptions": {"backend": "rocksdb", "storage": {"claimName": "a", "size": "1"}}},
            "not both",
        ),
    ],
)
def test_a_rule_of_the_operator_that_is_broken_is_told(changes: dict[str, Any], told: str) -> None:
    rayjob, _ = _rendered(FULL, _job())
    assert kuberay_rules.broken(rayjob) == []
    for path, value in changes.items():
        rayjob = _changed(rayjob, path, value)
    found = kuberay_rules.broken(rayjob)
    assert any(told in each for each in found), found
    assert not any("\n" in each for each in found)


# ---- kubectl, against a server that speaks its paths


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[kube_api.Api]:
    if shutil.which("kubectl") is None:
        pytest.skip("no kubectl on the PATH: what is handed to it is not tried")
    with kube_api.served() as served:
        monkeypatch.setenv("KUBECONFIG", str(served.kubeconfig(tmp_path)))
        monkeypatch.setenv("KUBECACHEDIR", str(tmp_path / "cache"))
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield served


@pytest.fixture
def job(tmp_path: Path) -> Job:
    code = tmp_path / "desk" / "code"
    code.mkdir(parents=True)
    (code / "here.py").write_text("WORD = 'travelled'\n")
    return _job(code=code)


THERE = "lab/train-1@here"
KEY = ("rayjobs", "lab", "train-1")


def test_a_job_is_checked_created_and_stopped_with_all_that_belongs_to_it(
    api: kube_api.Api, job: Job, tmp_path: Path
) -> None:
    place = crd.folder()
    if place is not None:  # a server that has the operator's schema
        api.broken = lambda told: "".join(crd.errors("RayJob", told, place)) if told["kind"] == "RayJob" else ""
    FULL.check(job)
    assert api.objects == {}
    assert FULL.submit(job) == THERE
    rayjob, settings = api.objects[KEY], api.objects["configmaps", "lab", "train-1"]
    shown, shown_settings = _rendered(FULL, job)
    assert rayjob["spec"] == shown["spec"]
    assert settings["data"] == shown_settings["data"]
    assert settings["metadata"]["ownerReferences"][0]["uid"] == rayjob["metadata"]["uid"]
    packed = tmp_path / "code.zip"
    packed.write_bytes(base64.b64decode(settings["binaryData"]["code.zip"]))
    with zipfile.ZipFile(packed) as code:
        assert code.read("here.py") == b"WORD = 'travelled'\n"
    FULL.stop(job, THERE)
    assert api.objects == {}
    FULL.stop(job, THERE)  # of one that is over, nothing happens


def test_the_yaml_that_is_shown_is_what_kubectl_reads(api: kube_api.Api, job: Job, tmp_path: Path) -> None:
    job = replace(job, environment={"A": "y", "B": "0o17", "C": "1_0", "D": "no", "E": "08"})
    (tmp_path / "rayjob.yaml").write_text(SITE.render(job)["rayjob.yaml"])
    command = ["kubectl", "create", "-f", str(tmp_path / "rayjob.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert api.objects[KEY]["spec"] == _rendered(SITE, job)[0]["spec"]


def test_nothing_is_left_when_the_second_object_is_refused(api: kube_api.Api, job: Job) -> None:
    api.allowed = lambda verb, plural: plural != "configmaps"
    with pytest.raises(ValueError, match=r"Forbidden.*ask for rights") as refused:
        SITE.submit(job)
    assert api.objects == {} and "\n" not in str(refused.value)
    assert any(each.startswith("POST") and "rayjobs" in each for each in api.asked)


def test_a_job_that_could_not_be_taken_back_is_named(api: kube_api.Api, job: Job) -> None:
    api.allowed = lambda verb, plural: plural != "configmaps" and verb != "delete"
    with pytest.raises(ValueError, match="rayjob train-1 may be there: delete it"):
        SITE.submit(job)


def test_a_job_of_the_same_name_is_left_alone(api: kube_api.Api, job: Job) -> None:
    SITE.submit(job)
    before = dict(api.objects)
    with pytest.raises(ValueError, match=r"already exists.*choose another name"):
        SITE.check(job)
    with pytest.raises(ValueError, match="already exists"):
        SITE.submit(job)
    assert api.objects == before


def test_code_that_no_configmap_takes_is_refused_before_anything_is_created(api: kube_api.Api, job: Job) -> None:
    (job.code / "noise.bin").write_bytes(os.urandom(1 << 20))
    with pytest.raises(ValueError, match=r"a ConfigMap takes 1,04\d,\d{3}"):
        SITE.submit(job)
    assert api.objects == {} and api.asked == []
    replace(SITE, code="image").submit(job)
    assert "binaryData" not in api.objects["configmaps", "lab", "train-1"]


def test_what_a_place_lacks_is_told_in_one_line(api: kube_api.Api, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    def told(site: KubeRay = SITE) -> str:
        with pytest.raises(ValueError) as refused:
            site.check(job)
        assert "\n" not in str(refused.value)
        return str(refused.value)

    assert "`kubectl config get-contexts`" in told(replace(SITE, context="nowhere"))
    assert "another namespace" in told(replace(SITE, namespace="nowhere"))
    api.broken = lambda told: 'strict decoding error: unknown field "spec.x"'
    assert "unknown field" in told()
    api.allowed = lambda verb, plural: False
    assert "ask for rights" in told()
    monkeypatch.setenv("PATH", "/nowhere")
    assert "there is no kubectl" in told()


def test_a_cluster_without_the_operator_is_told_in_one_line(api: kube_api.Api, job: Job) -> None:
    api.installed = False
    with pytest.raises(ValueError, match="KubeRay is not installed there"):
        SITE.check(job)


def test_an_api_that_does_not_answer_is_told_in_one_line(api: kube_api.Api, job: Job, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        api.address = f"http://127.0.0.1:{free.getsockname()[1]}"  # taken, and nobody listens
        api.kubeconfig(tmp_path)
        for ask in (SITE.check, SITE.submit, lambda job: SITE.state(job, THERE), lambda job: SITE.log(job, THERE, 0)):
            with pytest.raises(ValueError, match="kubectl cluster-info") as refused:
                ask(job)
            assert "\n" not in str(refused.value)


def test_a_jobs_state_is_told_as_the_operator_goes(api: kube_api.Api, job: Job) -> None:
    site = replace(SITE, queue="training")
    there = site.submit(job)
    assert site.state(job, there) == State(
        name="waiting", why="for Kueue to admit all of its 4 nodes to queue training at once"
    )
    status = {"jobDeploymentStatus": "Initializing", "rayClusterName": "train-1-abcde"}
    status |= {"rayClusterStatus": {"readyWorkerReplicas": 1, "desiredWorkerReplicas": 4}}
    api.objects[KEY] = {**api.objects[KEY], "status": status}
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "w-0", "labels": {"ray.io/cluster": "train-1-abcde"}},
    }
    waits = {"reason": "ImagePullBackOff", "message": "Back-off pulling image"}
    pod["status"] = {"containerStatuses": [{"name": "ray-worker", "state": {"waiting": waits}}]}
    api.objects["pods", "lab", "w-0"] = pod
    why = "for its pods, 1 of 4 workers are ready; w-0: ImagePullBackOff: Back-off pulling image"
    assert site.state(job, there) == State(name="waiting", why=why)
    del api.objects[KEY]
    assert site.state(job, there).name == "lost"


MESSAGE = (
    "Job entrypoint command failed with exit code {}, last available logs (truncated to 20,000 chars):\nTrace\n{}\n"
)


SAID = [
    ({}, State(name="waiting", why="for the KubeRay operator to look at it")),
    ({"jobDeploymentStatus": "Retrying"}, State(name="waiting", why="for a new cluster: the last one failed")),
    ({"jobDeploymentStatus": "Running"}, State(name="waiting", why="for the head to start the command")),
    ({"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"}, State(name="running")),
    ({"jobDeploymentStatus": "Running", "jobStatus": "RUNNING", "failed": 1}, State(name="running", why="try 2")),
    ({"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}, State(name="done", code=0)),
    ({"jobDeploymentStatus": "Complete", "jobStatus": "STOPPED"}, State(name="stopped")),
    (
        {"jobDeploymentStatus": "Failed", "reason": "AppFailed", "message": MESSAGE.format(3, "ValueError: no")},
        State(name="failed", why="ValueError: no", code=3),
    ),
    (
        {"jobDeploymentStatus": "Failed", "reason": "AppFailed", "message": MESSAGE.format(-9, "Killed")},
        State(name="failed", why="Killed", code=137),
    ),
    (
        {"jobDeploymentStatus": "Failed", "message": MESSAGE.format(75, "saved")},
        State(name="failed", why="its minutes were over: submit it again to go on", code=75),
    ),
    (
        {"jobDeploymentStatus": "Failed", "reason": "PreRunningDeadlineExceeded", "message": "The RayJob\nis late"},
        State(name="failed", why="PreRunningDeadlineExceeded: The RayJob is late"),
    ),
    (
        {"jobDeploymentStatus": "ValidationFailed", "reason": "ValidationFailed", "message": "bad"},
        State(name="failed", why="the operator refused it: ValidationFailed: bad"),
    ),
]


def test_what_the_operator_says_is_told_in_our_words(api: kube_api.Api, job: Job) -> None:
    for status, expected in SAID:
        api.objects[KEY] = {**_rendered(SITE, job)[0], "status": status}
        assert SITE.state(job, THERE) == expected, status
    api.objects[KEY]["metadata"]["deletionTimestamp"] = "2026-11-29T23:00:00Z"
    assert not SITE.state(job, THERE).over  # the operator still ends it


def test_the_log_is_the_submitters_and_goes_on_where_it_was_left(api: kube_api.Api, job: Job) -> None:
    there = SITE.submit(job)
    assert SITE.log(job, there, 0) == b""  # there is no submitter yet
    labels = {"batch.kubernetes.io/job-name": "train-1"}
    submitter = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "train-1", "namespace": "lab"}}
    api.objects["jobs", "lab", "train-1"] = {**submitter, "spec": {"selector": {"matchLabels": labels}}}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "s-0", "namespace": "lab", "labels": labels}}
    api.objects["pods", "lab", "s-0"] = {**pod, "spec": {"containers": [{"name": "ray-job-submitter"}]}}
    assert SITE.log(job, there, 0) == b""  # its container waits
    api.logs["s-0"] = "step 1\nstep 2\n"
    assert SITE.log(job, there, 0) == b"step 1\nstep 2\n"
    assert SITE.log(job, there, 7) == b"step 2\n"


# ---- The image


@pytest.fixture(scope="module")
def dockerfile() -> list[tuple[str, str]]:
    """Instructions of the Dockerfile and what follows them."""
    text = re.sub(r"\\\n\s*", "", (HOUSE / "Dockerfile").read_text())
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(line.partition(" ")[0], line.partition(" ")[2].strip()) for line in lines]


def test_the_image_installs_nothing_but_what_is_pinned(dockerfile: list[tuple[str, str]]) -> None:
    installs = [words for name, words in dockerfile if name == "RUN" and "pip install" in words]
    assert installs and all("-c constraints.txt" in words for words in installs)
    pins = {}
    for line in (HOUSE / "constraints.txt").read_text().split():
        name, _, pinned = line.partition("==")
        pins[re.sub(r"[-_.]+", "-", name).lower()] = pinned
    (listed,) = (re.search(r"python -c '([^']+)'", words) for words in installs if "python -c" in words)
    assert listed is not None
    done = subprocess.run([sys.executable, "-c", listed[1]], cwd=HOUSE, capture_output=True, text=True, check=True)
    wanted = [Requirement(line) for line in done.stdout.splitlines()]
    project = tomllib.loads((HOUSE / "pyproject.toml").read_text())["project"]
    assert [str(each) for each in wanted] == [str(Requirement(each)) for each in project["dependencies"]]
    for each in wanted:
        assert pins[re.sub(r"[-_.]+", "-", each.name).lower()] in each.specifier
    assert all(not re.search(r"token|secret|password", f"{name} {words}", re.IGNORECASE) for name, words in dockerfile)


def test_the_image_has_the_code_after_its_dependencies_and_runs_it_as_nobody_special(
    dockerfile: list[tuple[str, str]],
) -> None:
    names = [name for name, _ in dockerfile]
    first = next(at for at, (name, words) in enumerate(dockerfile) if name == "COPY" and "pipelines" in words)
    assert max(at for at, (name, words) in enumerate(dockerfile) if "pip install" in words) < first
    assert dict(dockerfile)["WORKDIR"] == kuberay.IMAGE_CODE
    assert re.fullmatch(r"[1-9]\d*(:[1-9]\d*)?", dict(dockerfile)["USER"])
    assert names.index("USER") > first
    (base,) = (words for name, words in dockerfile if name == "FROM")
    assert re.fullmatch(r"python:3\.11[\w.-]*", base)
    assert json.loads(dict(dockerfile)["CMD"]) == ["python", "-m", "pipelines", "--help"]


def test_what_the_image_copies_is_there_and_sent_to_the_builder(dockerfile: list[tuple[str, str]]) -> None:
    rules = [line for line in (HOUSE / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]

    def sent(path: str) -> bool:
        taken = True
        for rule in rules:  # the last that fits decides, for a folder and all in it
            pattern = rule.removeprefix("!").removeprefix("**/")
            parts = [path, *map(str, Path(path).parents)]
            if any(fnmatch(part, pattern) or ("**/" in rule and fnmatch(Path(part).name, pattern)) for part in parts):
                taken = rule.startswith("!")
        return taken

    copied = [word for name, words in dockerfile if name == "COPY" for word in words.split()[:-1] if word[:2] != "--"]
    assert {"clusters", "dataflow", "models", "pipelines", "constraints.txt", "pyproject.toml"} <= set(copied)
    for path in copied:
        assert (HOUSE / path).exists() and sent(path), path
    for path in (".git/config", ".venv/bin/python", "runs/jobs/x", ".env", "tests/here.py", "models/__pycache__/x.pyc"):
        assert not sent(path), path


def test_the_site_file_of_the_docs_is_of_this_kind() -> None:
    assert isinstance(sites.site(str(HOUSE / "docs" / "sites" / "kuberay.toml")), KubeRay)
