"""Local fake of the Hugging Face Hub: the requests that huggingface_hub makes, and failures of the real server.

The fixture `hub_server` starts one and points huggingface_hub at it.
"""

import base64
import contextlib
import hashlib
import json
import os
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

LFS_SUFFIXES = (".safetensors", ".bin", ".pt", ".zip", ".parquet")  # identified by SHA-256, served by a redirect


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class HubServer:
    """HTTP server with repositories at `url`; a context manager.

        with HubServer({"org/name": {"config.json": b"{}", "sub/model.safetensors": b"..."}}) as server: ...

    The repository of a dataset is `datasets/org/name`.

    Attributes:
        repos: files of each `main` branch; every change is a new commit.
        requests: log of the requests, such as `GET /org/name/resolve/main/config.json`.
        ranges: Range header, or None, of every download.
        gated: repositories that list their files but refuse downloads.
        private: repositories that are hidden from requests without one of the `tokens`.
        tokens: tokens with write access; requests with any other token are refused.
        error: HTTP status of every response, or None.
        portal: respond to everything with an HTML page, like the login page of a public network.
        hashes: include the SHA-256 of LFS files in lists.
        silent: accept connections without responding.
        cut: number of bytes, by file name, after which the next download of the file is interrupted.
        forged: content, by file name, that is sent instead of the file's.
        messages: messages of the pushed commits.
        uploads: uploaded LFS files, by SHA-256.
    """

    def __init__(self, repos: dict[str, dict[str, bytes]]):
        self.repos = repos
        self.requests: list[str] = []
        self.ranges: list[str | None] = []
        self.gated: set[str] = set()
        self.private: set[str] = set()
        self.tokens: set[str] = {"hf_writer"}
        self.error: int | None = None
        self.portal = False
        self.hashes = True
        self.silent = False
        self.cut: dict[str, int] = {}
        self.forged: dict[str, bytes] = {}
        self.messages: list[str] = []
        self.uploads: dict[str, bytes] = {}
        self._refs: dict[str, dict[str, str]] = {}
        self._commits: dict[tuple[str, str], dict[str, bytes]] = {}
        self._closed = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> "HubServer":
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the server; later connections are refused."""
        from huggingface_hub import close_session

        close_session()  # its connections belong to this server
        if not self._closed.is_set():
            self._closed.set()
            self._server.shutdown()
            self._server.server_close()

    def commit(self, repo: str, revision: str = "main") -> str | None:
        """Return the commit of a revision, or None; the current files of `main` are committed first."""
        refs = self._refs.setdefault(repo, {})
        if repo not in self.repos:
            return None
        content = "\n".join([repo, *(f"{name} {sha256(data)}" for name, data in sorted(self.repos[repo].items()))])
        refs["main"] = hashlib.sha1(content.encode()).hexdigest()
        self._commits[repo, refs["main"]] = dict(self.repos[repo])
        return refs.get(revision, revision if (repo, revision) in self._commits else None)

    def tag(self, repo: str, name: str) -> str:
        """Create a tag or branch at the current `main`, and return its commit."""
        commit = self.commit(repo)
        self._refs[repo][name] = commit
        return commit

    def files(self, repo: str, revision: str = "main") -> dict[str, bytes]:
        return self._commits[repo, self.commit(repo, revision)]

    def write(self, repo: str, revision: str, files: dict[str, bytes | None]) -> str:
        """Add a commit to a branch, and return it; None deletes a file."""
        files = {**self.files(repo, revision), **files}
        files = {name: content for name, content in files.items() if content is not None}
        if revision == "main":
            self.repos[repo] = files
            return self.commit(repo)
        commit = hashlib.sha1(f"{self.commit(repo, revision)} {sorted(files.items())}".encode()).hexdigest()
        self._commits[repo, commit] = files
        self._refs[repo][revision] = commit
        return commit

    def settings(self, home: Path) -> dict[str, str]:
        """Return environment variables that point huggingface_hub at this server only."""
        outer = {name: value for name, value in os.environ.items() if not _is_hub_variable(name)}
        return {**outer, "HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}

    def attach(self, monkeypatch, home: Path) -> None:
        """Point the imported huggingface_hub, which has already read its environment, at this server only."""
        from huggingface_hub import close_session, constants

        for name in filter(_is_hub_variable, list(os.environ)):
            monkeypatch.delenv(name)
        values = {
            "ENDPOINT": self.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": self.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HOME": str(home),
            "HF_HUB_CACHE": str(home / "hub"),
            "HUGGINGFACE_HUB_CACHE": str(home / "hub"),
            "HF_TOKEN_PATH": str(home / "token"),
            "HF_STORED_TOKENS_PATH": str(home / "stored_tokens"),
            "HF_XET_CACHE": str(home / "xet"),
            "AGENT_HARNESSES_PATH": str(home / "agent_harnesses.json"),
            "HF_HUB_DISABLE_XET": True,  # this server transfers large files by LFS
            "HF_HUB_DISABLE_TELEMETRY": True,
            "HF_HUB_DISABLE_IMPLICIT_TOKEN": False,
            "HF_HUB_DISABLE_SYMLINKS": False,
            "HF_HUB_OFFLINE": False,
            "HF_HUB_ETAG_TIMEOUT": 10,
            "HF_HUB_DOWNLOAD_TIMEOUT": 10,
        }
        for name, value in values.items():
            monkeypatch.setattr(constants, name, value, raising=False)
        close_session()  # an earlier session may have a proxy or connections to another server


def _is_hub_variable(name: str) -> bool:
    return bool(re.match(r"HF_|HUGGING|TRANSFORMERS_OFFLINE$|XDG_CACHE_HOME$|(\w+_)?proxy$", name, re.IGNORECASE))


class _Handler(BaseHTTPRequestHandler):
    """Handler of one request per connection (HTTP/1.0), so that no connection outlives the server."""

    hub: HubServer

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._serve()

    do_HEAD = do_POST = do_PUT = do_GET

    def _serve(self) -> None:
        self.path = unquote(urlsplit(self.path).path)
        self.body = self._body()
        self.hub.requests.append(f"{self.command} {self.path}")
        if self.hub.silent:
            self.hub._closed.wait()
        elif self.hub.portal:
            self._send(200, b"<html>Welcome to the Hotel", {"Content-Type": "text/html"})
        elif self.hub.error:
            self._refuse(self.hub.error, "", "it hurts")
        else:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                self._route()

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _route(self) -> None:
        for methods, pattern, respond in ROUTES:
            match = re.fullmatch(pattern, self.path)
            if match and self.command in methods:
                token = (self.headers.get("Authorization") or "Bearer ").removeprefix("Bearer ")
                if token and token not in self.hub.tokens:
                    return self._refuse(401, "", "Invalid credentials in Authorization header")
                if not token and "POST" in methods:
                    return self._refuse(401, "", "Invalid username or password.")
                repo = match.groupdict().get("repo")
                if repo and (repo not in self.hub.repos or (repo in self.hub.private and not token)):
                    return self._refuse(404 if token else 401, "RepoNotFound", "Repository not found")
                return respond(self, **match.groupdict())
        return self._refuse(404, "", "no such path")

    def _refuse(self, status: int, code: str, message: str) -> None:
        headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {})}
        self._send(status, json.dumps({"error": message}).encode(), {"Content-Type": "application/json", **headers})

    def _json(self, value: object, status: int = 200) -> None:
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, body: bytes, headers: dict[str, str], stop: int | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:stop])

    # -- reading

    def info(self, repo: str, revision: str = "main") -> None:
        """Commit and files of a repository."""
        commit = self.hub.commit(repo, revision)
        if commit is None:
            return self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        files = [self._entry(name, content) for name, content in self.hub.files(repo, commit).items()]
        return self._json(
            {"_id": "0", "id": repo, "modelId": repo, "sha": commit, "private": False, "tags": [], "siblings": files}
        )

    def tree(self, repo: str, revision: str) -> None:
        """Recursive list of the files of a revision."""
        commit = self.hub.commit(repo, revision)
        if commit is None:
            return self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        entries = []
        for name, content in self.hub.files(repo, commit).items():
            entry = {"type": "file", "path": name, "size": len(content), "oid": self._git_hash(content)}
            if name.endswith(LFS_SUFFIXES) and self.hub.hashes:
                entry["lfs"] = {"oid": sha256(content), "size": len(content), "pointerSize": 134}
            entries.append(entry)
        return self._json(entries)

    def _entry(self, name: str, content: bytes) -> dict:
        entry = {"rfilename": name, "size": len(content), "blobId": self._git_hash(content)}
        if name.endswith(LFS_SUFFIXES) and self.hub.hashes:
            entry["lfs"] = {"sha256": sha256(content), "size": len(content), "pointerSize": 134}
        return entry

    @staticmethod
    def _git_hash(content: bytes) -> str:
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

    def resolve(self, repo: str, revision: str, name: str) -> None:
        """Content of a file, or a redirect if it is in LFS."""
        commit = self.hub.commit(repo, revision)
        if repo in self.hub.gated:
            return self._refuse(403, "GatedRepo", "Access to this model is restricted")
        if commit is None:
            return self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        content = self.hub.files(repo, commit).get(name)
        if content is None:
            return self._refuse(404, "EntryNotFound", "Entry not found")
        if name.endswith(LFS_SUFFIXES):
            headers = {"X-Repo-Commit": commit, "X-Linked-Size": str(len(content)), "Content-Length": "0"}
            headers |= {"ETag": '"pointer"', "X-Linked-Etag": f'"{sha256(content)}"'}
            headers |= {"Location": f"http://localhost:{self.hub.port}/storage/{repo}/{commit}/{name}"}
            return self._send(302, b"", headers)
        return self._file(name, content, {"X-Repo-Commit": commit, "ETag": f'"{self._git_hash(content)}"'})

    def storage(self, owner: str, commit: str, name: str) -> None:
        """Content of a file in LFS."""
        content = self.hub.files(owner, commit)[name]
        self._file(name, content, {"ETag": f'"{sha256(content)}"'})

    def _file(self, name: str, content: bytes, headers: dict[str, str]) -> None:
        content = self.hub.forged.get(name, content)
        if self.command == "HEAD":
            return self._send(200, content, headers)
        requested_range = self.headers.get("Range")
        self.hub.ranges.append(requested_range)
        stop = self.hub.cut.pop(name, None)
        if not requested_range:
            return self._send(200, content, headers, stop)
        start = int(re.fullmatch(r"bytes=(\d+)-", requested_range)[1])
        headers |= {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
        return self._send(206, content[start:], headers, stop)

    # -- writing

    def create(self) -> None:
        request = json.loads(self.body)
        repo = f"{request.get('organization') or 'writer'}/{request['name']}"
        if repo in self.hub.repos:
            return self._json({"error": "exists", "url": f"{self.hub.url}/{repo}"}, 409)
        if repo.startswith("others/"):
            return self._refuse(403, "", "You don't have the rights to create a model under the namespace others")
        self.hub.repos[repo] = {}
        if request.get("private") or request.get("visibility") == "private":
            self.hub.private.add(repo)
        return self._json({"url": f"{self.hub.url}/{repo}"})

    def branch(self, repo: str, name: str) -> None:
        if self.hub.commit(repo, name):
            return self._refuse(409, "", "Reference already exists")
        self.hub.tag(repo, name)
        return self._json({})

    def validate(self) -> None:
        bad = "\nlicense: none-such" in json.loads(self.body)["content"]
        errors = [{"message": '"license" must be one of [mit]'}] if bad else []
        self._json({"errors": errors, "warnings": []}, 400 if bad else 200)

    def preupload(self, repo: str, revision: str) -> None:
        names = [file["path"] for file in json.loads(self.body)["files"]]
        modes = {name: "lfs" if name.endswith(LFS_SUFFIXES) else "regular" for name in names}
        self._json({"files": [{"path": n, "uploadMode": modes[n], "shouldIgnore": False} for n in names]})

    def batch(self, repo: str) -> None:
        """Upload URLs of LFS files, without those that the server already has."""
        objects = []
        for requested in json.loads(self.body)["objects"]:
            upload = {"upload": {"href": f"{self.hub.url}/lfs/{requested['oid']}", "header": {}}}
            objects.append({**requested, **({} if requested["oid"] in self.hub.uploads else {"actions": upload})})
        self._json({"transfer": "basic", "objects": objects})

    def upload(self, oid: str) -> None:
        self.hub.uploads[oid] = self.body
        self._send(200 if sha256(self.body) == oid else 400, b"", {})

    def push(self, repo: str, revision: str) -> None:
        if repo.startswith("others/"):
            return self._refuse(403, "", "Forbidden: pass `create_pr=1` as a query parameter to create a Pull Request")
        files = {}
        for key, value in ((line["key"], line["value"]) for line in map(json.loads, self.body.splitlines())):
            if key == "header":
                self.hub.messages.append(value["summary"])
            elif key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "deletedFile":
                files[value["path"]] = None
            elif key == "lfsFile":
                files[value["path"]] = self.hub.uploads[value["oid"]]
        commit = self.hub.write(repo, revision, files)
        return self._json({"commitUrl": f"{self.hub.url}/{repo}/commit/{commit}", "commitOid": commit})


REPO = r"(?P<repo>[^/]+/[^/]+)"
DATASET = r"(?P<repo>datasets/[^/]+/[^/]+)"
ROUTES = [
    (("POST",), "/api/repos/create", _Handler.create),
    (("POST",), "/api/validate-yaml", _Handler.validate),
    (("POST",), f"/api/models/{REPO}/branch/(?P<name>.+)", _Handler.branch),
    (("POST",), f"/api/models/{REPO}/preupload/(?P<revision>.+)", _Handler.preupload),
    (("POST",), f"/api/models/{REPO}/commit/(?P<revision>.+)", _Handler.push),
    (("POST",), rf"/{REPO}\.git/info/lfs/objects/batch", _Handler.batch),
    (("PUT",), "/lfs/(?P<oid>[0-9a-f]+)", _Handler.upload),
    (("GET",), f"/api/{DATASET}/tree/(?P<revision>.+)", _Handler.tree),
    (("GET",), f"/api/models/{REPO}/tree/(?P<revision>.+)", _Handler.tree),
    (("GET",), f"/api/{DATASET}/revision/(?P<revision>.+)", _Handler.info),
    (("GET",), f"/api/{DATASET}", _Handler.info),
    (("GET", "HEAD"), f"/{DATASET}/resolve/(?P<revision>[^/]+)/(?P<name>.+)", _Handler.resolve),
    (("GET",), f"/api/models/{REPO}/revision/(?P<revision>.+)", _Handler.info),
    (("GET",), "/api/models/(?P<repo>[^/]+(/[^/]+)?)", _Handler.info),
    (("GET", "HEAD"), f"/{REPO}/resolve/(?P<revision>[^/]+)/(?P<name>.+)", _Handler.resolve),
    (("GET", "HEAD"), "/storage/(?P<owner>(datasets/)?[^/]+/[^/]+)/(?P<commit>[^/]+)/(?P<name>.+)", _Handler.storage),
]
