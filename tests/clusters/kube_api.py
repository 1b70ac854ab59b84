"""An API server of Kubernetes, as far as kubectl asks for what a job needs: discovery, objects, the log of a pod.

Real kubectl speaks to it over HTTP, so that words, files, exit codes and messages are kubectl's own. What it is asked
to create is refused where a test says that it is broken. No controller runs: a test says what the operator would.
"""

from __future__ import annotations

import json
import re
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

NAMESPACE = "lab"  # the only one that is there

_KINDS = {  # group and version -> plural -> kind
    "v1": {"configmaps": "ConfigMap", "pods": "Pod", "namespaces": "Namespace"},
    "ray.io/v1": {"rayjobs": "RayJob"},
    "batch/v1": {"jobs": "Job"},
}
_OBJECT = re.compile(r"/(?:api|apis/[a-z.]+)/v1/namespaces/([^/]+)/([a-z]+)(?:/([^/]+))?(?:/(log))?")


@dataclass(kw_only=True)
class Api:
    """What the server has and may.

    objects: by plural, namespace and name. asked: method and path of each request. logs: of pods by name. installed:
    whether the operator's kinds are known. allowed: whether a verb on a plural is. broken: what an object has wrong.
    """

    address: str = ""
    objects: dict[tuple[str, str, str], dict[str, Any]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    logs: dict[str, str] = field(default_factory=dict)
    installed: bool = True
    allowed: Callable[[str, str], bool] = lambda verb, plural: True
    broken: Callable[[dict[str, Any]], str] = lambda told: ""

    def kubeconfig(self, folder: Path) -> Path:
        """A file by which kubectl finds this server."""
        path = folder / "kubeconfig"
        told = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "here", "cluster": {"server": self.address}}],
            "users": [{"name": "me", "user": {}}],
            "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me", "namespace": NAMESPACE}}],
            "current-context": "here",
        }
        path.write_text(json.dumps(told))
        return path


@contextmanager
def served() -> Iterator[Api]:
    """A server on a port of its own, until the block ends."""
    api = Api()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            self._answer("GET")

        def do_POST(self) -> None:
            self._answer("POST")

        def do_DELETE(self) -> None:
            self._answer("DELETE")

        def _answer(self, method: str) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            api.asked.append(f"{method} {self.path}")
            code, told = _answered(api, method, self.path, json.loads(body) if body else {})
            packed = told.encode() if isinstance(told, str) else json.dumps(told).encode()
            self.send_response(code)
            self.send_header("Content-Type", "text/plain" if isinstance(told, str) else "application/json")
            self.send_header("Content-Length", str(len(packed)))
            self.end_headers()
            self.wfile.write(packed)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    api.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield api
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _answered(api: Api, method: str, url: str, given: dict[str, Any]) -> tuple[int, dict[str, Any] | str]:
    parts = urlsplit(url)
    query = {name: values[0] for name, values in parse_qs(parts.query).items()}
    found = _OBJECT.fullmatch(parts.path)
    if found is None:
        return _discovered(api, parts.path)
    namespace, plural, name, log = found.groups()
    if namespace != NAMESPACE:
        return _status(404, "NotFound", f'namespaces "{namespace}" not found')
    if plural == "rayjobs" and not api.installed:
        return _status(404, "NotFound", "the server could not find the requested resource")
    verb = {"GET": "get", "POST": "create", "DELETE": "delete"}[method]
    if not api.allowed(verb, plural):
        what = f'{plural} is forbidden: User "me" cannot {verb} resource "{plural}" in the namespace "{namespace}"'
        return _status(403, "Forbidden", what)
    if method == "POST":
        return _created(api, namespace, plural, given, dry="dryRun" in query)
    if name is None:
        wanted = dict(pair.split("=") for pair in query.get("labelSelector", "").split(",") if pair)
        items = [
            each
            for (kind, place, _), each in api.objects.items()
            if (kind, place) == (plural, namespace) and wanted.items() <= each["metadata"].get("labels", {}).items()
        ]
        return 200, {"apiVersion": "v1", "kind": "PodList", "metadata": {}, "items": items}
    key = (plural, namespace, name)
    if key not in api.objects:
        return _status(404, "NotFound", f'{plural} "{name}" not found')
    if log:
        if name not in api.logs:
            return _status(
                400, "BadRequest", f'container "{query["container"]}" is waiting to start: ContainerCreating'
            )
        return 200, api.logs[name]
    if method == "DELETE":
        gone = api.objects.pop(key)
        for other, each in list(api.objects.items()):  # the garbage collector
            if any(o["uid"] == gone["metadata"]["uid"] for o in each["metadata"].get("ownerReferences", [])):
                del api.objects[other]
        return 200, {"apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Success"}
    return 200, api.objects[key]


def _created(api: Api, namespace: str, plural: str, given: dict[str, Any], *, dry: bool) -> tuple[int, dict[str, Any]]:
    key = (plural, namespace, given["metadata"]["name"])
    if key in api.objects:
        return _status(409, "AlreadyExists", f'{plural} "{key[2]}" already exists')
    if wrong := api.broken(given):
        return _status(400, "BadRequest", f'{given["kind"]} in version "v1" cannot be handled: {wrong}')
    made = {**given, "metadata": {**given["metadata"], "namespace": namespace, "uid": str(uuid.uuid4())}}
    if not dry:
        api.objects[key] = made
    return 201, made


def _discovered(api: Api, path: str) -> tuple[int, dict[str, Any] | str]:
    if path == "/api":
        return 200, {"kind": "APIVersions", "versions": ["v1"]}
    groups = [group for group in _KINDS if "/" in group and (api.installed or group != "ray.io/v1")]
    if path == "/apis":
        listed = []
        for group in groups:
            version = {"groupVersion": group, "version": "v1"}
            listed.append({"name": group.split("/")[0], "versions": [version], "preferredVersion": version})
        return 200, {"kind": "APIGroupList", "apiVersion": "v1", "groups": listed}
    group = path.removeprefix("/apis/").removeprefix("/api/")
    if path == "/apis/apiextensions.k8s.io/v1/customresourcedefinitions":
        return 200, {"kind": "CustomResourceDefinitionList", "apiVersion": "apiextensions.k8s.io/v1", "items": []}
    if path == "/openapi/v2":
        return 200, ""  # as protobuf: a document that says nothing
    if path == "/openapi/v3":
        known = {f"{'apis' if '/' in group else 'api'}/{group}": group for group in ("v1", *groups)}
        return 200, {"paths": {place: {"serverRelativeURL": f"/openapi/v3/{place}?hash=1"} for place in known}}
    if path.startswith("/openapi/v3/"):
        return 200, _schema(path.partition("/openapi/v3/")[2].removeprefix("apis/").removeprefix("api/"))
    if group in ("v1", *groups):
        verbs = ["create", "delete", "get", "list"]
        resources = [
            {"name": plural, "singularName": kind.lower(), "namespaced": True, "kind": kind, "verbs": verbs}
            for plural, kind in _KINDS[group].items()
        ]
        return 200, {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group, "resources": resources}
    return _status(404, "NotFound", "the server could not find the requested resource")


def _schema(group: str) -> dict[str, Any]:
    """That the server itself checks fields, and can do so without keeping the object: nothing is left for kubectl."""
    name, _, version = group.rpartition("/")
    asked = [{"in": "query", "name": name, "schema": {"type": "string"}} for name in ("dryRun", "fieldValidation")]
    paths = {}
    for plural, kind in _KINDS[group].items():
        which = {"group": name, "version": version, "kind": kind}
        patched = {"x-kubernetes-group-version-kind": which, "parameters": asked, "responses": {}}
        paths[f"/{'apis' if name else 'api'}/{group}/namespaces/{{namespace}}/{plural}/{{name}}"] = {"patch": patched}
    return {"openapi": "3.0.0", "info": {"title": "Kubernetes", "version": "1"}, "paths": paths, "components": {}}


def _status(code: int, reason: str, message: str) -> tuple[int, dict[str, Any]]:
    told = {"apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Failure"}
    return code, {**told, "reason": reason, "message": message, "code": code}
