"""A hub on loopback: what a push and a download use of the Hugging Face hub's protocol, and its faults."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit


@dataclass
class FakeHub:
    """What the hub holds, and how it misbehaves.

    Attributes:
        repos: visibility ("public" or "private") by name.
        commits: files of every commit, by repository and commit.
        branches: the commit of a branch, by repository and branch.
        status: what every request is answered with, where it is set.
        broken_at: bytes of weights after which a connection is cut.
        breaks: how many connections are cut.
        delay: seconds before every answer.
        requests: what was asked, in order.
    """

    repos: dict[str, str] = field(default_factory=dict)
    commits: dict[tuple[str, str], dict[str, bytes]] = field(default_factory=dict)
    branches: dict[tuple[str, str], str] = field(default_factory=dict)
    status: int | None = None
    broken_at: int = 0
    breaks: int = 0
    delay: float = 0.0
    requests: list[str] = field(default_factory=list)
    url: str = ""

    def add(self, repo: str, files: dict[str, bytes], branch: str = "main") -> str:
        """Hold a commit, and return its name."""
        before = self.branches.get((repo, branch))
        files = {**self.commits.get((repo, before or ""), {}), **files}
        commit = sha1(repr(sorted(files.items())).encode()).hexdigest()
        self.repos.setdefault(repo, "public")
        self.commits[repo, commit] = files
        self.branches[repo, branch] = commit
        return commit

    def commit_of(self, repo: str, revision: str) -> str | None:
        if (repo, revision) in self.commits:
            return revision
        return self.branches.get((repo, revision))


@contextmanager
def served() -> Iterator[FakeHub]:
    """Yield a hub that listens on loopback."""
    hub = FakeHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self._file(body=False)

    def do_GET(self) -> None:
        if not self._path().startswith("/api/"):
            self._file(body=True)
            return
        if self._misbehaves():
            return
        # /api/models/org/name[/revision/REV]
        parts = self._path().split("/")[3:]
        repo, revision = "/".join(parts[:2]), parts[3] if len(parts) > 3 else "main"
        if repo not in self.hub.repos:
            self._answer(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
            return
        commit = self.hub.commit_of(repo, revision) or "0" * 40
        files = [{"rfilename": name} for name in self.hub.commits.get((repo, commit), {})]
        private = self.hub.repos[repo] == "private"
        self._answer(200, {"id": repo, "sha": commit, "private": private, "siblings": files})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self._misbehaves():
            return
        parts = self._path().split("/")[2:]
        if parts == ["repos", "create"]:
            self._create(json.loads(body))
        elif parts == ["validate-yaml"]:
            self._answer(200, {"errors": [], "warnings": []})
        elif "preupload" in parts:
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            self._answer(200, {"files": files})
        elif "branch" in parts:
            repo, branch = "/".join(parts[1:3]), parts[4]
            known = self.hub.branches
            known.setdefault((repo, branch), known.get((repo, "main"), ""))
            self._answer(200, {})
        elif "commit" in parts:
            self._commit("/".join(parts[1:3]), parts[4], body)
        else:
            self._answer(404, {"error": self._path()})

    def _create(self, asked: dict[str, Any]) -> None:
        name = f"{asked['organization']}/{asked['name']}"
        if name in self.hub.repos:
            self._answer(
                409, {"error": "You already created this model repo", "url": f"{self.hub.url}/{name}"}
            )
            return
        private = asked.get("private") or asked.get("visibility") == "private"
        self.hub.repos[name] = "private" if private else "public"
        self.hub.add(name, {".gitattributes": b""})
        self._answer(200, {"url": f"{self.hub.url}/{name}"})

    def _commit(self, repo: str, branch: str, body: bytes) -> None:
        files: dict[str, bytes] = {}
        for line in body.splitlines():
            item = json.loads(line)
            if item["key"] == "file":
                assert item["value"]["encoding"] == "base64"
                files[item["value"]["path"]] = base64.b64decode(item["value"]["content"])
        commit = self.hub.add(repo, files, branch)
        url = f"{self.hub.url}/{repo}/commit/{commit}"
        self._answer(200, {"success": True, "commitOid": commit, "commitUrl": url, "hookOutput": ""})

    def _file(self, *, body: bool) -> None:
        if self._misbehaves():
            return
        # /org/name/resolve/REV/FILE
        org, name, _, revision, file = self._path().split("/")[1:6]
        repo = f"{org}/{name}"
        commit = self.hub.commit_of(repo, revision)
        if repo not in self.hub.repos:
            self._answer(401, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        elif commit is None:
            self._answer(404, {"error": "Revision not found"}, {"X-Error-Code": "RevisionNotFound"})
        elif file not in self.hub.commits[repo, commit]:
            headers = {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit}
            self._answer(404, {"error": "Entry not found"}, headers)
        else:
            self._send(self.hub.commits[repo, commit][file], commit, body=body)

    def _send(self, content: bytes, commit: str, *, body: bool) -> None:
        etag = sha1(content).hexdigest()
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0] or 0)
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("ETag", f'"{etag}"')
        self.send_header("X-Repo-Commit", commit)
        self.end_headers()
        if not body:
            return
        if self.hub.breaks and len(content) > self.hub.broken_at > 0:
            self.hub.breaks -= 1
            self.wfile.write(content[start : self.hub.broken_at])
            self.wfile.flush()
            self.close_connection = True
            self.connection.close()
            return
        self.wfile.write(content[start:])

    def _path(self) -> str:
        return unquote(urlsplit(self.path).path)

    def _misbehaves(self) -> bool:
        self.hub.requests.append(f"{self.command} {self._path()}")
        time.sleep(self.hub.delay)
        if self.hub.status is None:
            return False
        self._answer(self.hub.status, {"error": "no"})
        return True

    def _answer(self, status: int, value: Any, headers: dict[str, str] | None = None) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        for name, each in (headers or {}).items():
            self.send_header(name, each)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
