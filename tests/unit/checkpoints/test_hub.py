"""Repositories from a local server that imitates the few endpoints of the hub that huggingface_hub calls."""

from __future__ import annotations

import hashlib
import importlib
import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from clip.checkpoints.hub import choose_files, fetch_repository, is_repository_id
from clip.errors import CheckpointError, ChecksumError, ConfigError, DownloadError, MissingDependencyError

ID = "laion/tiny-clip"
FIRST, SECOND = "1" * 40, "2" * 40


def is_large(name: str) -> bool:
    """Whether the hub keeps a file in its large-file storage, with a SHA-256."""
    return name.endswith((".safetensors", ".bin"))


@dataclass
class Repository:
    commits: dict[str, dict[str, bytes]]
    branches: dict[str, str] = field(default_factory=lambda: {"main": FIRST})
    error: tuple[int, str] | None = None
    """Status and X-Error-Code of every answer."""
    damaged: set[str] = field(default_factory=set)
    """Files of which other bytes of the same number are sent."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append(f"{self.command} {path}")
        self.close_connection = True
        for repo_id, repository in self.server.repositories.items():
            if path == f"/api/models/{repo_id}" or path.startswith(f"/api/models/{repo_id}/"):
                return self.describe(repository, path.removeprefix(f"/api/models/{repo_id}").strip("/"))
            if path.startswith(f"/{repo_id}/resolve/"):
                commit, name = path.removeprefix(f"/{repo_id}/resolve/").split("/", 1)
                return self.send_file(repository, commit, name)
        return self.answer(404, {"X-Error-Code": "RepoNotFound"})

    do_HEAD = do_GET  # noqa: N815  # the name that the base class calls

    def describe(self, repository: Repository, rest: str) -> None:
        if repository.error is not None:
            return self.answer(repository.error[0], {"X-Error-Code": repository.error[1]})
        kind, _, revision = rest.partition("/")
        commit = repository.branches.get(revision or "main", revision)
        if commit not in repository.commits:
            return self.answer(404, {"X-Error-Code": "RevisionNotFound"})
        files = []
        for name, body in repository.commits[commit].items():
            large = {"sha256": hashlib.sha256(body).hexdigest(), "size": len(body), "pointerSize": 134}
            facts = {"size": len(body), "lfs": large} if is_large(name) else {"size": len(body)}
            if kind == "tree":
                identifier = {"lfs": {**large, "oid": large["sha256"]}} if is_large(name) else {}
                files.append({"type": "file", "path": name, "oid": self.etag(name, body), **facts, **identifier})
            else:
                files.append({"rfilename": name, "blobId": self.etag(name, body), **facts})
        value = files if kind == "tree" else {"id": ID, "modelId": ID, "sha": commit, "siblings": files}
        return self.answer(200, {"Content-Type": "application/json"}, json.dumps(value).encode())

    def send_file(self, repository: Repository, commit: str, name: str) -> None:
        if repository.error is not None:
            return self.answer(repository.error[0], {"X-Error-Code": repository.error[1]})
        commit = repository.branches.get(commit, commit)
        body = repository.commits[commit].get(name)
        if body is None:
            return self.answer(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        headers = {"X-Repo-Commit": commit, "ETag": f'"{self.etag(name, body)}"'}
        self.answer(200, headers, bytes(len(body)) if name in repository.damaged else body)
        if self.server.after is not None and self.server.after[0] == name and self.command == "GET":
            self.server.after[1]()
        return None

    @staticmethod
    def etag(name: str, body: bytes) -> str:
        return hashlib.sha256(body).hexdigest() if is_large(name) else hashlib.sha1(body).hexdigest()

    def answer(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body)), "Connection": "close"}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, Repository] = {}
        self.requests: list[str] = []
        self.after: tuple[str, Callable[[], object]] | None = None
        """What happens once a file of that name was sent."""

    @property
    def fetched(self) -> list[str]:
        """Names of the files whose bytes were sent."""
        return sorted(r.rpartition("/")[2] for r in self.requests if r.startswith("GET /") and "/resolve/" in r)


FILES = {
    "README.md": b"words",
    "config.json": b'{"of": "transformers"}',
    "open_clip_config.json": b'{"of": "open_clip"}',
    "open_clip_model.safetensors": b"open_clip weights" * 99,
    "open_clip_pytorch_model.bin": b"a pickle",
    "modeling_evil.py": b"raise SystemExit",
    "preprocessor_config.json": b"{}",
    "tokenizer.json": b"{}",
}
WANTED = ["config.json", "open_clip_config.json", "open_clip_model.safetensors", "preprocessor_config.json"]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    constants = pytest.importorskip("huggingface_hub.constants")
    for name in list(os.environ):
        if name.startswith("EVERYCLIP_") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    with Server() as server:
        server.repositories[ID] = Repository({FIRST: FILES})
        endpoint = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)  # what HF_ENDPOINT sets, read when it is imported
        template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        for module in (constants, importlib.import_module("huggingface_hub.file_download")):  # versions before 1.0
            monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


# --- Which files ------------------------------------------------------------------------------------------------------

CONFIGS = ["config.json", "open_clip_config.json"]


@pytest.mark.parametrize(
    ("names", "weights"),
    [
        ([*CONFIGS, "open_clip_model.safetensors", "model.safetensors"], ["open_clip_model.safetensors"]),
        ([*CONFIGS, "open_clip_pytorch_model.bin", "model.safetensors"], ["model.safetensors"]),
        ([*CONFIGS, "open_clip_pytorch_model.bin", "pytorch_model.bin"], ["open_clip_pytorch_model.bin"]),
        (["config.json", "pytorch_model.bin", "flax_model.msgpack"], ["pytorch_model.bin"]),
        (
            ["open_clip_config.json", "open_clip_pytorch_model.bin", "model.safetensors"],
            ["open_clip_pytorch_model.bin"],
        ),
        (["pytorch_model.bin", "model.safetensors"], ["model.safetensors"]),
        (
            [
                "config.json",
                "model.safetensors.index.json",
                "model-00002-of-00002.safetensors",
                "model-00001-of-00002.safetensors",
                "other-00001-of-00002.safetensors",
                "pytorch_model-00001-of-00001.bin",
            ],
            ["model.safetensors.index.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"],
        ),
    ],
)
def test_one_set_of_weights_is_chosen_with_its_configuration(names: list[str], weights: list[str]) -> None:
    chosen = choose_files([*names, "preprocessor_config.json", "modeling_clip.py", "tokenizer.json"])
    assert [name for name in chosen if not name.endswith("config.json")] == weights
    assert {name for name in names if name.endswith("config.json")} < set(chosen)


def test_a_repository_without_weights_is_an_error() -> None:
    with pytest.raises(CheckpointError, match=r"there is README\.md, but none of open_clip_model\.safetensors"):
        choose_files(["README.md"])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("laion/CLIP-ViT-B-32-laion2B-s34B-b79K", True),
        ("hf-hub:laion/CLIP-ViT-B-32-laion2B-s34B-b79K", True),
        ("laion/tiny@v1.0", True),
        ("ViT-B-32", False),
        ("./weights/model.pt", False),
        ("/weights/model.pt", False),
        ("a/b/c", False),
    ],
)
def test_ids_have_one_slash(name: str, expected: bool) -> None:
    assert is_repository_id(name) is expected


@pytest.mark.parametrize(
    "name", ["x", "a/b/c", "../b", "a/../b", "a/b--c", "a/b.", "a/" + "b" * 99, "a/b@../../c", "a/b@"]
)
def test_a_malformed_id_is_refused_before_any_request(name: str, server: Server, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not"):
        fetch_repository(name, cache=tmp_path)
    assert server.requests == []


def test_two_revisions_in_one_call_are_refused(server: Server, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'v1', the argument 'v2'"):
        fetch_repository(ID + "@v1", revision="v2", cache=tmp_path)


# --- From the hub -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "hf-hub:"])
def test_only_what_is_read_is_fetched(server: Server, tmp_path: Path, prefix: str) -> None:
    folder = fetch_repository(prefix + ID, cache=tmp_path)
    assert server.fetched == WANTED
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {name: FILES[name] for name in WANTED}


def test_a_second_call_fetches_nothing_again(server: Server, tmp_path: Path) -> None:
    folder = fetch_repository(ID, cache=tmp_path)
    server.requests.clear()
    assert fetch_repository(ID, cache=tmp_path) == folder
    assert server.fetched == []


def test_a_moved_branch_is_followed_and_a_commit_stays(server: Server, tmp_path: Path) -> None:
    first = fetch_repository(ID, cache=tmp_path)
    server.repositories[ID].commits[SECOND] = {**FILES, "open_clip_model.safetensors": b"better"}
    server.repositories[ID].branches["main"] = SECOND
    second = fetch_repository(ID, cache=tmp_path)
    assert (second / "open_clip_model.safetensors").read_bytes() == b"better"
    assert fetch_repository(f"{ID}@{FIRST}", cache=tmp_path) == first
    assert fetch_repository(ID, revision=SECOND, cache=tmp_path) == second


def test_shards_come_with_their_index(server: Server, tmp_path: Path) -> None:
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    files = {"config.json": b"{}", "model.safetensors.index.json": json.dumps(index).encode()}
    shards = {name: name.encode() for name in index["weight_map"].values()}
    server.repositories[ID] = Repository({FIRST: {**files, **shards}})
    folder = fetch_repository(ID, cache=tmp_path)
    assert {path.name for path in folder.iterdir()} == {*files, *shards}
    server.repositories[ID] = Repository(
        {SECOND: {**files, "model-00001-of-00002.safetensors": b"x"}}, {"main": SECOND}
    )
    with pytest.raises(DownloadError, match="lacks shards that its index names"):
        fetch_repository(ID, cache=tmp_path)


def test_weights_alone_are_enough(server: Server, tmp_path: Path) -> None:
    server.repositories[ID] = Repository({FIRST: {"model.safetensors": b"weights", "README.md": b""}})
    assert [path.name for path in fetch_repository(ID, cache=tmp_path).iterdir()] == ["model.safetensors"]


def test_a_branch_that_moves_during_the_download_is_not_mixed(server: Server, tmp_path: Path) -> None:
    server.repositories[ID].commits[SECOND] = {**FILES, "open_clip_model.safetensors": b"other"}
    server.after = ("open_clip_config.json", lambda: server.repositories[ID].branches.update(main=SECOND))
    for expected in (FILES["open_clip_model.safetensors"], b"other"):
        folder = fetch_repository(ID, cache=tmp_path)
        assert (folder / "open_clip_model.safetensors").read_bytes() == expected
        assert (folder / "open_clip_config.json").exists()


def test_a_bad_index_is_an_error(server: Server, tmp_path: Path) -> None:
    server.repositories[ID] = Repository({FIRST: {"config.json": b"{}", "model.safetensors.index.json": b"[]"}})
    with pytest.raises(CheckpointError, match="not an index of shards"):
        fetch_repository(ID, cache=tmp_path)


def test_damaged_weights_are_found_and_not_kept(server: Server, tmp_path: Path) -> None:
    server.repositories[ID].damaged.add("open_clip_model.safetensors")
    for _ in range(2):
        with pytest.raises(ChecksumError, match=hashlib.sha256(FILES["open_clip_model.safetensors"]).hexdigest()):
            fetch_repository(ID, cache=tmp_path)
    server.repositories[ID].damaged.clear()
    folder = fetch_repository(ID, cache=tmp_path)
    assert (folder / "open_clip_model.safetensors").read_bytes() == FILES["open_clip_model.safetensors"]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        ((404, "RepoNotFound"), "is not on http://127.0.0.1:.*HF_TOKEN"),
        ((401, "RepoNotFound"), "is not on http://127.0.0.1:.*HF_TOKEN"),
        ((403, "GatedRepo"), "is gated: accept its conditions at http://127.0.0.1:.*/laion/tiny-clip"),
        ((400, ""), "could not be downloaded"),
    ],
)
def test_refusals_are_translated(server: Server, tmp_path: Path, error: tuple[int, str], message: str) -> None:
    server.repositories[ID].error = error
    with pytest.raises(DownloadError, match=message):
        fetch_repository(ID, cache=tmp_path)


def test_a_revision_that_is_not_there_is_named(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="no branch, tag or commit 'v9'"):
        fetch_repository(ID, revision="v9", cache=tmp_path)


def test_a_repository_without_weights_is_named(server: Server, tmp_path: Path) -> None:
    server.repositories[ID] = Repository({FIRST: {"README.md": b""}})
    with pytest.raises(CheckpointError, match=f"{ID}: no weights that can be read: there is README.md"):
        fetch_repository(ID, cache=tmp_path)
    assert server.fetched == []


# --- Without the hub --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variable", ["EVERYCLIP_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_only_the_cache_is_read(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    folder = fetch_repository(ID, cache=tmp_path)
    server.requests.clear()
    if variable == "HF_HUB_OFFLINE":
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    else:
        monkeypatch.setenv(variable, "1")
    assert fetch_repository(ID, cache=tmp_path) == folder
    for absent in ("laion/absent", ID + "@v1"):
        with pytest.raises(DownloadError, match=f"{absent} is not in the local cache"):
            fetch_repository(absent, cache=tmp_path)
    assert server.requests == []


@pytest.mark.parametrize("is_link_left", [False, True])
def test_offline_a_half_filled_cache_is_not_enough(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_link_left: bool
) -> None:
    weights = fetch_repository(ID, cache=tmp_path) / "open_clip_model.safetensors"
    (weights.resolve() if is_link_left else weights).unlink()
    monkeypatch.setenv("EVERYCLIP_OFFLINE", "1")
    with pytest.raises(DownloadError, match="not in the local cache"):
        fetch_repository(ID, cache=tmp_path)


def test_a_hub_out_of_reach_leaves_the_cache_with_a_warning(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = fetch_repository(ID, cache=tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:1")  # nothing listens there
    with caplog.at_level(logging.WARNING, logger="clip"):
        assert fetch_repository(ID, cache=tmp_path) == folder
    assert "the hub does not answer" in caplog.text
    with pytest.raises(DownloadError, match="laion/absent could not be downloaded: Connect"):
        fetch_repository("laion/absent", cache=tmp_path)


def test_without_the_library_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingDependencyError, match=r"pip install everyclip\[hub\]"):
        fetch_repository(ID)


def test_the_endpoint_variable_is_heeded_from_outside(server: Server, tmp_path: Path) -> None:
    code = f"from clip.checkpoints.hub import fetch_repository; print(fetch_repository({ID!r}))"
    environment = {
        **os.environ,
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HUB_CACHE": str(tmp_path),
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert result.stdout.strip().endswith(f"/snapshots/{FIRST}")
    assert server.fetched == WANTED
