"""A model hub in this process: what huggingface_hub asks of the real one, over HTTP, for processes that tests start.

It knows repositories, branches, pull requests, commits and large files (LFS); not Xet, pagination, gating or data sets.
It can be told to break a connection.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

TOKEN, OTHER_TOKEN = "hf_owner", "hf_stranger"
REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"
REV = r"(?P<rev>[^/?]+)"


@dataclass
class Repo:
    """One repository: what each commit holds, and which commit each branch and pull request is at."""

    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)
    refs: dict[str, str] = field(default_factory=dict)
    pull_requests: int = 0

    def commit(self, ref: str, files: dict[str, bytes], message: str) -> str:
        oid = hashlib.sha1(f"{len(self.messages)} {message}".encode()).hexdigest()
        self.commits[oid], self.refs[ref] = files, oid
        self.messages.append(message)
        return oid

    def at(self, revision: str) -> str | None:
        """The commit of a branch, or a commit itself."""
        return self.refs.get(revision) or (revision if revision in self.commits else None)

    def files(self, revision: str = "main") -> dict[str, bytes]:
        return self.commits[self.refs[revision]]


class RefusedError(Exception):
    """An answer that is not 200."""

    def __init__(self, status: int, message: str, code: str | None = None, body: Any = None) -> None:
        self.status, self.message, self.code, self.body = status, message, code, body


class HubServer(ThreadingHTTPServer):
    """The hub; `url` is what `HF_ENDPOINT` is set to."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.repos: dict[str, Repo] = {}
        self.large: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.breaks: list[tuple[str, str]] = []
        self.lock = threading.RLock()

    def break_once(self, what: str, how: str = "early") -> None:
        """Let the next request whose method and path hold `what` fail.

        Args:
            what: A part of `POST /api/...`.
            how: `"early"` closes the connection in the middle of the request, `"late"` after what was asked for was
                done, so that only the answer is lost; `"503"` says that the hub is out of order.
        """
        self.breaks.append((what, how))

    def environment(self, home: Path, token: str | None = TOKEN, **more: str) -> dict[str, str]:
        """The environment of a process that uses this hub and the cache below `home`."""
        kept = {
            key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING", "TRANSFORMERS"))
        }
        ours = {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "OMP_NUM_THREADS": "1"}
        return {**kept, **ours, **({"HF_TOKEN": token} if token else {}), **more}

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Broken connections are what some tests are about, so they are not reported."""


@contextmanager
def hub_server() -> Iterator[HubServer]:
    """A hub that runs while the block does."""
    server = HubServer()
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def is_large(path: str) -> bool:
    """Whether a file goes through LFS, as a new repository's .gitattributes says."""
    return path.endswith((".safetensors", ".bin"))


def blob_id(path: str, content: bytes) -> str:
    if is_large(path):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server: HubServer

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.answer()

    do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815

    def answer(self) -> None:
        line = f"{self.command} {self.path}"
        broken = next((pair for pair in self.server.breaks if pair[0] in line), None)
        if broken:
            self.server.breaks.remove(broken)
            if broken[1] == "early":
                self.rfile.read1(64)  # mid-way: some of what was sent has arrived
                self.break_off()
                return
        self.content = self.body()
        with self.server.lock:
            self.server.requests.append(line)
            try:
                if broken and broken[1] == "503":
                    raise RefusedError(503, "out of order")
                status, headers, content = self.route()
            except RefusedError as refusal:
                headers = {"X-Error-Message": refusal.message}
                if refusal.code:
                    headers["X-Error-Code"] = refusal.code
                status, content = refusal.status, json.dumps(refusal.body or {"error": refusal.message}).encode()
        if broken and broken[1] == "late":
            self.break_off()
            return
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def break_off(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def route(self) -> tuple[int, dict[str, str], bytes]:
        """What is answered: status, headers, content."""
        split = urlsplit(self.path)
        self.query = {key: values[0] for key, values in parse_qs(split.query).items()}
        routes = {
            r"POST /api/validate-yaml": self.validate,
            r"GET /api/whoami-v2": self.whoami,
            r"POST /api/repos/create": self.create,
            rf"GET /api/models/{REPO}": self.info,
            rf"GET /api/models/{REPO}/revision/{REV}": self.info,
            rf"GET /api/models/{REPO}/tree/{REV}(?:/(?P<path>.+))?": self.tree,
            rf"POST /api/models/{REPO}/branch/{REV}": self.branch,
            rf"POST /api/models/{REPO}/preupload/{REV}": self.preupload,
            rf"POST /api/models/{REPO}/commit/{REV}": self.commit,
            rf"POST /{REPO}\.git/info/lfs/objects/batch": self.batch,
            r"PUT /large/(?P<oid>\w+)": self.store,
            r"POST /large/(?P<oid>\w+)/verify": self.verify,
            rf"(?:GET|HEAD) /{REPO}/resolve/{REV}/(?P<path>.+)": self.resolve,
        }
        for pattern, handle in routes.items():
            if found := re.fullmatch(pattern, f"{self.command} {split.path}"):
                said = {key: unquote(value) for key, value in found.groupdict().items() if value is not None}
                told = handle(**said)
                return told if isinstance(told, tuple) else (200, {"Content-Type": "application/json"}, to_json(told))
        raise RefusedError(404, f"no such endpoint: {self.command} {self.path}")

    def user(self) -> str | None:
        """Who asks; `None` without a token."""
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in (TOKEN, OTHER_TOKEN):
            raise RefusedError(401, "Invalid credentials in Authorization header")
        return {TOKEN: "owner", OTHER_TOKEN: "stranger"}.get(token)

    def repo(self, name: str, write: bool = False) -> Repo:
        user, repo = self.user(), self.server.repos.get(name)
        if repo is None or (repo.private and user != "owner"):
            raise RefusedError(404 if user else 401, "Repository not found", "RepoNotFound")
        if write and user != "owner":
            raise RefusedError(403 if user else 401, "You don't have write access to this repository")
        return repo

    def head(self, repo: Repo, revision: str) -> str:
        oid = repo.at(revision)
        if oid is None:
            raise RefusedError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return oid

    def whoami(self) -> Any:
        if not (user := self.user()):
            raise RefusedError(401, "Invalid username or password.")
        return {"type": "user", "name": user, "orgs": [{"name": "org"}] if user == "owner" else [], "auth": {}}

    def validate(self) -> Any:
        errors = card_errors(json.loads(self.content)["content"])
        if errors:
            told = {"errors": [{"message": error} for error in errors], "warnings": []}
            raise RefusedError(400, "Invalid metadata", body=told)
        return {"errors": [], "warnings": []}

    def create(self) -> Any:
        asked, user = json.loads(self.content), self.user()
        if user is None:
            raise RefusedError(401, "Invalid username or password.")
        namespace = asked.get("organization") or user
        if user != "owner" or namespace not in ("owner", "org"):
            message = f'You don\'t have the rights to create a model under the namespace "{namespace}"'
            raise RefusedError(403, message)
        name = f"{namespace}/{asked['name']}"
        url = f"{self.server.url}/{name}"
        if name in self.server.repos:
            raise RefusedError(409, "You already created this model repo", body={"error": "exists", "url": url})
        repo = self.server.repos[name] = Repo(private=asked.get("visibility") == "private")
        repo.commit(
            "main", {".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"}, "initial commit"
        )
        return {"url": url, "name": name}

    def info(self, repo: str, rev: str = "main") -> Any:
        found = self.repo(repo)
        oid = self.head(found, rev)
        siblings = [{"rfilename": path} for path in sorted(found.commits[oid])]
        return {"_id": repo, "id": repo, "modelId": repo, "sha": oid, "private": found.private, "siblings": siblings}

    def tree(self, repo: str, rev: str, path: str = "") -> Any:
        found = self.repo(repo)
        files = found.commits[self.head(found, rev)]
        inside = {name: content for name, content in files.items() if name.startswith(f"{path}/" if path else "")}
        if path and not inside:
            raise RefusedError(404, f"{path} does not exist", "EntryNotFound")
        return [
            {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
            for name, content in sorted(inside.items())
        ]

    def branch(self, repo: str, rev: str) -> Any:
        found = self.repo(repo, write=True)
        if rev in found.refs:
            raise RefusedError(409, "Reference already exists")
        found.refs[rev] = found.refs["main"]
        return {}

    def preupload(self, repo: str, rev: str) -> Any:
        pull_request = "create_pr" in self.query
        found = self.repo(repo, write=not pull_request)
        files = found.commits[self.head(found, rev)]
        return {
            "files": [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if is_large(file["path"]) else "regular",
                    "shouldIgnore": False,
                    "oid": blob_id(file["path"], files[file["path"]]) if file["path"] in files else None,
                }
                for file in json.loads(self.content)["files"]
            ]
        }

    def commit(self, repo: str, rev: str) -> Any:
        pull_request = "create_pr" in self.query
        found = self.repo(repo, write=not pull_request)
        oid = self.head(found, rev)
        files, header = dict(found.commits[oid]), {}
        for line in self.content.splitlines():
            key, value = (entry := json.loads(line))["key"], entry["value"]
            if key == "header":
                header = value
            elif key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                files[value["path"]] = self.server.large[value["oid"]]
            elif key == "deletedFile" and files.pop(value["path"], None) is None:
                raise RefusedError(404, f"A file with this name doesn't exist: {value['path']}", "EntryNotFound")
        if header.get("parentCommit", oid) != oid:
            raise RefusedError(412, "A commit has happened since. Please refresh and try again.")
        told = {"success": True, "commitOid": "", "commitUrl": ""}
        if pull_request:
            found.pull_requests += 1
            rev = f"refs/pr/{found.pull_requests}"
            told["pullRequestUrl"] = f"{self.server.url}/{repo}/discussions/{found.pull_requests}"
        oid = found.commit(rev, files, header["summary"])
        return {**told, "commitOid": oid, "commitUrl": f"{self.server.url}/{repo}/commit/{oid}"}

    def batch(self, repo: str) -> Any:
        self.repo(repo)
        objects = []
        for each in json.loads(self.content)["objects"]:
            href = f"{self.server.url}/large/{each['oid']}"
            actions = {"upload": {"href": href, "header": {}}, "verify": {"href": f"{href}/verify", "header": {}}}
            objects.append({**each, **({} if each["oid"] in self.server.large else {"actions": actions})})
        return {"transfer": "basic", "objects": objects}

    def store(self, oid: str) -> Any:
        if hashlib.sha256(self.content).hexdigest() != oid:
            raise RefusedError(400, "content and oid differ")
        self.server.large[oid] = self.content
        return {}

    def verify(self, oid: str) -> Any:
        if len(self.server.large.get(oid, b"")) != json.loads(self.content)["size"]:
            raise RefusedError(400, "size differs")
        return {}

    def resolve(self, repo: str, rev: str, path: str) -> tuple[int, dict[str, str], bytes]:
        found = self.repo(repo)
        oid = self.head(found, rev)
        if path not in found.commits[oid]:
            raise RefusedError(404, f"no file {path}", "EntryNotFound")
        content = found.commits[oid][path]
        headers = {"X-Repo-Commit": oid, "ETag": f'"{blob_id(path, content)}"', "Accept-Ranges": "bytes"}
        if is_large(path):
            headers |= {"X-Linked-Etag": headers["ETag"], "X-Linked-Size": str(len(content))}
        if found_range := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start, end = int(found_range[1]), int(found_range[2] or len(content) - 1)
            headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
            return 206, headers, content[start : end + 1]
        return 200, headers, content


def to_json(value: Any) -> bytes:
    return json.dumps(value).encode()


def card_errors(text: str) -> list[str]:
    """What the hub has against the metadata of a card: a small part of its rules."""
    found = re.match(r"---\n(.*?)\n---", text, flags=re.DOTALL)
    try:
        data = yaml.safe_load(found[1]) if found else {}
    except yaml.YAMLError:
        return ["the metadata is no YAML"]
    if not isinstance(data, Mapping):
        return ["the metadata is no mapping"]
    errors = []
    if not re.fullmatch(r"[\w.-]+/[\w.-]+|[\w.-]+|", data.get("base_model", "")):
        errors.append('"base_model" must be a model id')
    for entry in data.get("model-index", []):
        for result in entry["results"]:
            if not result["task"].get("type") or not {"type", "name"} <= result["dataset"].keys():
                errors.append("model-index: a result needs a task and a dataset with type and name")
            if not all({"type", "value"} <= metric.keys() for metric in result["metrics"]):
                errors.append("model-index: a metric needs type and value")
    return errors
