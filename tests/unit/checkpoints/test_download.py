"""Downloads from a real local server that cuts, lies, stalls, redirects and changes its mind."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import io
import logging
import os
import random
import re
import resource
import shutil
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
import requests

from clip.checkpoints import download, verified
from clip.checkpoints.download import RetryPolicy, default_directory, fetch, mirrored
from clip.checkpoints.verified import file_sha256, is_verified
from clip.errors import ChecksumError, ConfigError, DownloadError

BODY = random.Random(0).randbytes(1_000_000)
SHA256 = hashlib.sha256(BODY).hexdigest()
OTHER = random.Random(1).randbytes(len(BODY))
PATH = f"/clip/models/{SHA256}/tiny.pt"
QUICK = RetryPolicy(connect_seconds=10, stall_seconds=10, attempts=4, backoff_seconds=0.001, max_wait_seconds=0.05)


# --- A server whose behaviour is a list of answers --------------------------------------------------------------------


class Handler(BaseHTTPRequestHandler):
    """Answers the n-th request with the n-th answer of the server's list, the last one for ever after."""

    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        with self.server.counting:
            answer = self.server.answers[min(len(self.server.requests), len(self.server.answers) - 1)]
            self.server.requests.append((self.path, {name.title(): value for name, value in self.headers.items()}))
        self.close_connection = True
        with contextlib.suppress(ConnectionError):  # a client that was killed, or has seen enough
            answer(self)

    def begin(self, status: int, *, length: int | None = None, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if length is not None:
            self.send_header("Content-Length", str(length))
        self.send_header("Connection", "close")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


Answer = Callable[[Handler], None]


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: list[Answer] = [File()]
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.counting = threading.Lock()

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def url(self) -> str:
        return self.base + PATH

    def asked(self, header: str) -> list[str | None]:
        return [headers.get(header) for _, headers in self.requests]


@dataclass
class File:
    """Serves a body, with ranges and If-Range as RFC 9110 wants them, save for the fault asked for."""

    body: bytes = BODY
    etag: str | None = '"v1"'
    has_ranges: bool = True
    cut_after: int | None = None
    stall_after: int | None = None
    announced: int | None = None
    bytes_per_second: float | None = None
    headers: dict[str, str] = field(default_factory=dict)

    def __call__(self, handler: Handler) -> None:
        wanted, condition = handler.headers.get("Range"), handler.headers.get("If-Range")
        headers = dict(self.headers, **({"ETag": self.etag} if self.etag else {}))
        start = 0
        if wanted and self.has_ranges and condition in (None, self.etag):
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= len(self.body):
                handler.begin(416, length=0, Content_Range=f"bytes */{len(self.body)}", **headers)
                return
            headers["Content_Range"] = f"bytes {start}-{len(self.body) - 1}/{len(self.body)}"
        length = len(self.body) - start if self.announced is None else self.announced
        handler.begin(206 if start else 200, length=length, **headers)
        end = start + min(v for v in (self.cut_after, self.stall_after, len(self.body)) if v is not None)
        for position in range(start, min(end, len(self.body)), 50_000):
            handler.wfile.write(self.body[position : min(position + 50_000, end)])
            if self.bytes_per_second:
                time.sleep(50_000 / self.bytes_per_second)
        if self.stall_after is not None:
            handler.wfile.flush()
            time.sleep(1.0)


def status(code: int, **headers: str) -> Answer:
    return lambda handler: handler.begin(code, length=0, **headers)


def raw(head: str, *, endless: bool = False) -> Answer:
    """A hand-written answer; with ``endless``, chunks follow until the client hangs up."""

    def answer(handler: Handler) -> None:
        handler.wfile.write(head.replace("\n", "\r\n").encode())
        while endless:
            handler.wfile.write(b"10000\r\n" + bytes(0x10000) + b"\r\n")

    return answer


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("EVERYCLIP_") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


def records(directory: Path) -> set[str]:
    return {path.name for path in (directory / ".everyclip").iterdir()}


def partial(directory: Path) -> Path:
    return directory / ".everyclip" / "tiny.pt.part"


def get(server: Server, directory: Path, *, sha256: str | None = SHA256, **options: object) -> Path:
    return fetch(server.url, sha256=sha256, directory=directory, policy=QUICK, **options)  # type: ignore[arg-type]


def leave_partial(server: Server, directory: Path, size: int, *, sha256: str | None = SHA256) -> None:
    """What a first call leaves that was cut for good near ``size`` bytes."""
    server.answers = [File(cut_after=size), status(404)]
    with pytest.raises(DownloadError, match="404"):
        get(server, directory, sha256=sha256)
    assert 0 < partial(directory).stat().st_size <= size
    assert not (directory / "tiny.pt").exists()
    server.requests.clear()


def note_waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits between attempts, which are not waited for. The module's clock alone: servers sleep too."""
    waits: list[float] = []
    monkeypatch.setattr(download, "time", SimpleNamespace(sleep=waits.append, time=time.time))
    return waits


# --- The plain way ----------------------------------------------------------------------------------------------------


def test_a_file_arrives_whole_and_only_records_stay_beside_it(server: Server, tmp_path: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    path = get(server, tmp_path / "new" / "folder", progress=lambda done, total: seen.append((done, total)))
    assert path == tmp_path / "new" / "folder" / "tiny.pt"
    assert path.read_bytes() == BODY
    assert records(path.parent) == {"tiny.pt.lock", "tiny.pt.verified"}
    assert seen[0] == (0, len(BODY))
    assert seen[-1] == (len(BODY), len(BODY))
    assert seen == sorted(seen)
    assert server.asked("Accept-Encoding") == ["identity"]
    assert server.asked("Range") == [None]


def test_a_file_is_on_disk_before_it_gets_its_name_by_one_rename(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[tuple[int, int, bool]] = []
    fsync = os.fsync

    def note(descriptor: int) -> None:
        stat = os.fstat(descriptor)
        synced.append((stat.st_ino, stat.st_size, (tmp_path / "tiny.pt").exists()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    path = get(server, tmp_path)
    assert synced[0] == (path.stat().st_ino, len(BODY), False)
    assert [inode for inode, _, _ in synced[1:]] == [tmp_path.stat().st_ino]


def test_a_file_at_hand_needs_no_request_and_is_hashed_once(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As OpenAI's package leaves them: the bare file, no record."""
    (tmp_path / "tiny.pt").write_bytes(BODY)
    hashed: list[Path] = []
    monkeypatch.setattr(verified, "file_sha256", lambda path: hashed.append(path) or file_sha256(path))
    for _ in range(3):
        assert get(server, tmp_path, sha256=SHA256.upper()) == tmp_path / "tiny.pt"
    assert hashed == [tmp_path / "tiny.pt"]
    assert server.requests == []


def test_a_downloaded_file_is_not_hashed_again(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    get(server, tmp_path)
    monkeypatch.setattr(verified, "file_sha256", lambda path: pytest.fail("hashed again"))
    get(server, tmp_path)
    assert len(server.requests) == 1


def test_without_a_hash_a_file_at_hand_is_taken_as_it_is(server: Server, tmp_path: Path) -> None:
    assert get(server, tmp_path, sha256=None).read_bytes() == BODY
    (tmp_path / "tiny.pt").write_bytes(b"mine")
    assert get(server, tmp_path, sha256=None).read_bytes() == b"mine"
    assert len(server.requests) == 1
    assert records(tmp_path) == {"tiny.pt.lock"}


def test_an_empty_file_is_a_file(server: Server, tmp_path: Path) -> None:
    server.answers = [File(body=b"")]
    assert get(server, tmp_path, sha256=hashlib.sha256().hexdigest()).read_bytes() == b""
    assert get(server, tmp_path, sha256=None, filename="b.pt").read_bytes() == b""


def test_a_body_without_a_length_is_read_to_its_end(server: Server, tmp_path: Path) -> None:
    head = "HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n5\nhello\n6\n world\n0\n\n"
    server.answers = [raw(head)]
    totals: list[int | None] = []
    path = get(server, tmp_path, sha256=None, progress=lambda done, total: totals.append(total))
    assert path.read_bytes() == b"hello world"
    assert set(totals) == {None}


def test_the_body_is_kept_as_sent_whatever_its_encoding_is_called(server: Server, tmp_path: Path) -> None:
    server.answers = [File(headers={"Content_Encoding": "gzip"})]
    assert get(server, tmp_path).read_bytes() == BODY


def test_another_file_under_the_name_is_replaced_with_a_warning(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "tiny.pt").write_bytes(OTHER)
    assert get(server, tmp_path).read_bytes() == BODY
    assert "does not have the SHA-256" in caplog.text


def test_another_file_under_the_name_stays_when_the_download_fails(server: Server, tmp_path: Path) -> None:
    (tmp_path / "tiny.pt").write_bytes(OTHER)
    server.answers = [status(404)]
    with pytest.raises(DownloadError):
        get(server, tmp_path)
    assert (tmp_path / "tiny.pt").read_bytes() == OTHER


def test_a_folder_under_the_name_is_an_error(server: Server, tmp_path: Path) -> None:
    (tmp_path / "tiny.pt").mkdir()
    with pytest.raises(DownloadError, match="not a regular file"):
        get(server, tmp_path)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "..\\b", "a\0b", ".everyclip"])
def test_a_name_that_leads_elsewhere_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be the name"):
        fetch("http://host.example/x.pt", sha256=None, directory=tmp_path, filename=name)


def test_an_encoded_slash_in_the_address_does_not_leave_the_folder(tmp_path: Path) -> None:
    (tmp_path / "x.pt").touch()
    assert fetch("http://h.example/..%2F..%2Fx.pt", sha256=None, directory=tmp_path) == tmp_path / "x.pt"


@pytest.mark.parametrize(
    "url",
    ["file:///etc/passwd", "ftp://host.example/x.pt", "x.pt", "https:///x.pt", "http://[::1/x.pt", "http://h:x/x.pt"],
)
def test_only_web_addresses_are_fetched(url: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"'{re.escape(url)}' is not a web address; .* https://HOST/PATH"):
        fetch(url, sha256=None, directory=tmp_path)


def test_a_malformed_hash_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="64 hexadecimal digits"):
        fetch("http://host.example/x.pt", sha256="abc", directory=tmp_path)


# --- Verified once ----------------------------------------------------------------------------------------------------


def test_a_changed_file_is_hashed_again_even_if_size_and_time_are_restored(tmp_path: Path) -> None:
    path = tmp_path / "tiny.pt"
    path.write_bytes(BODY)
    assert is_verified(path, SHA256)
    before = path.stat()
    time.sleep(0.02)  # the clock of the file system ticks every few milliseconds
    path.write_bytes(OTHER)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    assert not is_verified(path, SHA256)


def test_a_file_written_to_while_it_is_hashed_is_not_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "tiny.pt"
    path.write_bytes(BODY)

    def hash_and_overwrite(path: Path) -> str:
        path.write_bytes(OTHER + OTHER)
        return SHA256

    monkeypatch.setattr(verified, "file_sha256", hash_and_overwrite)
    assert not is_verified(path, SHA256)
    assert not (tmp_path / ".everyclip").exists()


def test_a_record_for_another_hash_or_a_damaged_one_counts_for_nothing(tmp_path: Path) -> None:
    path = tmp_path / "tiny.pt"
    path.write_bytes(BODY)
    assert is_verified(path, SHA256)
    assert not is_verified(path, hashlib.sha256(OTHER).hexdigest())
    for damaged in (b"", b"[]", b"{", b"\xff"):
        (tmp_path / ".everyclip" / "tiny.pt.verified").write_bytes(damaged)
        assert is_verified(path, SHA256)


def test_a_folder_that_takes_no_records_still_serves_its_files(server: Server, tmp_path: Path) -> None:
    (tmp_path / "tiny.pt").write_bytes(BODY)
    (tmp_path / ".everyclip").write_bytes(b"a file where the records' folder would be")
    assert get(server, tmp_path).read_bytes() == BODY
    with pytest.raises(DownloadError, match="choose another folder"):
        get(server, tmp_path, filename="absent.pt")


# --- Cuts, resumes, and servers that lie ------------------------------------------------------------------------------


def test_a_cut_download_goes_on_where_it_stopped(server: Server, tmp_path: Path) -> None:
    server.answers = [File(cut_after=400_000), File(cut_after=300_000), File()]
    assert get(server, tmp_path).read_bytes() == BODY
    starts = [0 if r is None else int(r.removeprefix("bytes=").removesuffix("-")) for r in server.asked("Range")]
    assert starts == sorted(set(starts))
    assert len(starts) == 3
    assert server.asked("If-Range") == [None, '"v1"', '"v1"']


def test_a_later_call_goes_on_where_an_earlier_one_stopped(server: Server, tmp_path: Path) -> None:
    leave_partial(server, tmp_path, 500_000)
    at_hand = partial(tmp_path).stat().st_size
    server.answers = [File()]
    seen: list[int] = []
    assert get(server, tmp_path, progress=lambda done, total: seen.append(done)).read_bytes() == BODY
    assert server.asked("Range") == [f"bytes={at_hand}-"]
    assert server.asked("If-Range") == ['"v1"']
    assert seen[0] == at_hand


def test_a_server_without_ranges_starts_again_cleanly(server: Server, tmp_path: Path) -> None:
    server.answers = [File(cut_after=600_000, has_ranges=False), File(has_ranges=False)]
    assert get(server, tmp_path).read_bytes() == BODY


@pytest.mark.parametrize("sha256", [SHA256, None])
def test_a_file_that_changes_in_between_is_never_mixed(server: Server, tmp_path: Path, sha256: str | None) -> None:
    server.answers = [File(body=OTHER, etag='"v0"', cut_after=600_000), File()]
    assert get(server, tmp_path, sha256=sha256).read_bytes() == BODY
    assert server.asked("If-Range") == [None, '"v0"']


@pytest.mark.parametrize("sha256", [SHA256, None])
def test_a_part_under_another_etag_is_not_appended(server: Server, tmp_path: Path, sha256: str | None) -> None:
    """A server that honours Range and ignores If-Range."""

    def heedless(handler: Handler) -> None:
        del handler.headers["If-Range"]
        File(etag='"v1"')(handler)

    server.answers = [File(body=OTHER, etag='"v0"', cut_after=600_000), heedless, File()]
    assert get(server, tmp_path, sha256=sha256).read_bytes() == BODY
    assert server.asked("Range")[2] is None


def test_two_halves_of_different_files_are_found_by_the_hash_and_fetched_anew(server: Server, tmp_path: Path) -> None:
    """No ETag at all: only the hash can tell."""
    server.answers = [File(body=OTHER, etag=None, cut_after=600_000), File(etag=None)]
    assert get(server, tmp_path).read_bytes() == BODY
    assert [r is None for r in server.asked("Range")] == [True, False, True]


@pytest.mark.parametrize("etag", [None, 'W/"v1"'])
def test_without_hash_and_strong_etag_nothing_is_resumed(server: Server, tmp_path: Path, etag: str | None) -> None:
    server.answers = [File(etag=etag, cut_after=600_000), File(etag=etag)]
    assert get(server, tmp_path, sha256=None).read_bytes() == BODY
    assert server.asked("Range") == [None, None]


def test_bytes_of_another_version_under_the_same_name_are_not_continued(server: Server, tmp_path: Path) -> None:
    leave_partial(server, tmp_path, 500_000)
    server.answers = [File(body=OTHER)]
    assert get(server, tmp_path, sha256=hashlib.sha256(OTHER).hexdigest()).read_bytes() == OTHER
    assert server.asked("Range") == [None]


def test_a_part_that_starts_elsewhere_is_not_appended(server: Server, tmp_path: Path) -> None:
    leave_partial(server, tmp_path, 500_000)
    wrong = status(206, Content_Range=f"bytes 7-{len(BODY) - 1}/{len(BODY)}")
    server.answers = [wrong, File()]
    assert get(server, tmp_path).read_bytes() == BODY
    assert server.asked("Range")[1] is None


def test_a_complete_partial_file_needs_no_request(server: Server, tmp_path: Path) -> None:
    """Killed between the last byte and the rename."""
    leave_partial(server, tmp_path, 500_000)
    partial(tmp_path).write_bytes(BODY)
    assert get(server, tmp_path).read_bytes() == BODY
    assert server.requests == []


def test_a_complete_partial_file_without_hash_is_confirmed_by_416(server: Server, tmp_path: Path) -> None:
    leave_partial(server, tmp_path, 500_000, sha256=None)
    partial(tmp_path).write_bytes(BODY)
    server.answers = [File()]
    assert get(server, tmp_path, sha256=None).read_bytes() == BODY
    assert server.asked("Range") == [f"bytes={len(BODY)}-"]


def test_416_with_too_many_bytes_at_hand_starts_again(server: Server, tmp_path: Path) -> None:
    leave_partial(server, tmp_path, 500_000)
    partial(tmp_path).write_bytes(OTHER + OTHER)
    server.answers = [File()]
    assert get(server, tmp_path).read_bytes() == BODY
    assert [r is None for r in server.asked("Range")] == [False, True]


def test_a_body_shorter_than_announced_is_a_cut(server: Server, tmp_path: Path) -> None:
    server.answers = [File(announced=len(BODY) + 10, has_ranges=False)]
    with pytest.raises(DownloadError, match="gave up after 4 failures"):
        get(server, tmp_path, sha256=None)
    assert not (tmp_path / "tiny.pt").exists()


def test_a_body_longer_than_announced_is_found_by_the_hash(server: Server, tmp_path: Path) -> None:
    server.answers = [File(announced=len(BODY) - 10)]
    with pytest.raises(ChecksumError):
        get(server, tmp_path)


def test_a_wrong_file_is_discarded_and_both_hashes_named(server: Server, tmp_path: Path) -> None:
    server.answers = [File(body=OTHER)]
    with pytest.raises(ChecksumError) as caught:
        get(server, tmp_path)
    assert SHA256 in str(caught.value)
    assert hashlib.sha256(OTHER).hexdigest() in str(caught.value)
    assert isinstance(caught.value, RuntimeError)  # what OpenAI's package raises
    assert list(tmp_path.glob("*.pt")) == []
    assert records(tmp_path) == {"tiny.pt.lock"}
    assert len(server.requests) == 1


def test_a_wrong_file_in_two_parts_is_tried_once_more_and_then_refused(server: Server, tmp_path: Path) -> None:
    server.answers = [File(body=OTHER, cut_after=500_000), File(body=OTHER)]
    with pytest.raises(ChecksumError):
        get(server, tmp_path)
    assert len(server.requests) == 3


def test_a_wrong_file_always_in_two_parts_is_refused_too(server: Server, tmp_path: Path) -> None:
    cut, rest = File(body=OTHER, cut_after=500_000), File(body=OTHER)
    server.answers = [cut, rest, cut, rest, status(404)]
    with pytest.raises(ChecksumError):
        get(server, tmp_path)


def test_a_server_that_refuses_ranges_nobody_asked_for_gives_no_empty_file(server: Server, tmp_path: Path) -> None:
    server.answers = [status(416, Content_Range="bytes */0")]
    with pytest.raises(DownloadError, match="no bytes beyond those at hand"):
        get(server, tmp_path, sha256=None)


def test_a_silent_server_is_left_and_asked_again(server: Server, tmp_path: Path) -> None:
    server.answers = [lambda handler: time.sleep(0.8), File(stall_after=500_000), File()]
    policy = dataclasses.replace(QUICK, stall_seconds=0.3, attempts=20)  # a busy machine may be silent once more
    assert fetch(server.url, sha256=SHA256, directory=tmp_path, policy=policy).read_bytes() == BODY
    assert len(server.requests) >= 3


def test_progress_starts_the_count_of_failures_again(server: Server, tmp_path: Path) -> None:
    policy = RetryPolicy(attempts=2, useful_bytes=50_000, backoff_seconds=0)
    server.answers = [File(cut_after=150_000)]
    path = fetch(server.url, sha256=SHA256, directory=tmp_path, policy=policy)
    assert path.read_bytes() == BODY
    assert len(server.requests) > 4


def test_attempts_without_progress_end(server: Server, tmp_path: Path) -> None:
    server.answers = [File(cut_after=100_000, has_ranges=False)]
    with pytest.raises(DownloadError, match=r"(cut|ended) after \d+ .*gave up after 4 failures in a row"):
        get(server, tmp_path)
    assert len(server.requests) == 4


# --- Statuses and redirects -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [401, 403, 404, 410, 451])
def test_a_final_status_names_address_status_and_remedies(server: Server, tmp_path: Path, code: int) -> None:
    server.answers = [status(code)]
    with pytest.raises(DownloadError) as caught:
        get(server, tmp_path)
    for part in (server.url, str(code), "EVERYCLIP_MIRROR", str(tmp_path / "tiny.pt"), SHA256):
        assert part in str(caught.value)
    assert len(server.requests) == 1


@pytest.mark.parametrize("code", [429, 500, 502, 503, 504])
def test_a_passing_status_is_tried_again(server: Server, tmp_path: Path, code: int) -> None:
    server.answers = [status(code), status(code), File()]
    assert get(server, tmp_path).read_bytes() == BODY


def test_a_server_that_stays_down_is_given_up(server: Server, tmp_path: Path) -> None:
    server.answers = [status(503)]
    with pytest.raises(DownloadError, match=r"503.*gave up after 4 failures"):
        get(server, tmp_path)
    assert len(server.requests) == 4


@pytest.mark.parametrize(
    ("retry_after", "low", "high"),
    [
        ("7", 7, 7),
        ("100000", 20, 20),
        (lambda: formatdate(time.time() + 10, usegmt=True), 8, 10),
        (lambda: formatdate(time.time() - 99, usegmt=True), 0, 0),
        ("soon", 3, 5),
        ("-3", 3, 5),
    ],
)
def test_retry_after_is_honoured_and_bounded(
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    retry_after: str | Callable[[], str],
    low: float,
    high: float,
) -> None:
    value = retry_after if isinstance(retry_after, str) else retry_after()
    server.answers = [status(429, Retry_After=value), File()]
    waits = note_waits(monkeypatch)
    policy = RetryPolicy(backoff_seconds=4, max_wait_seconds=20)
    fetch(server.url, sha256=SHA256, directory=tmp_path, policy=policy)
    assert len(waits) == 1
    assert low <= waits[0] <= high


def test_waits_double_up_to_the_limit(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.answers = [status(503)]
    waits = note_waits(monkeypatch)
    monkeypatch.setattr(download.random, "uniform", lambda low, high: 1.0)
    with pytest.raises(DownloadError):
        policy = RetryPolicy(attempts=6, backoff_seconds=1, max_wait_seconds=6)
        fetch(server.url, sha256=SHA256, directory=tmp_path, policy=policy)
    assert waits == [1, 2, 4, 6, 6]


def test_nobody_listening_is_said_plainly(tmp_path: Path) -> None:
    with Server() as server:
        url = server.url
    with pytest.raises(DownloadError, match=r"refused; gave up after 4 failures.*EVERYCLIP_MIRROR"):
        fetch(url, sha256=SHA256, directory=tmp_path, policy=QUICK)


def test_a_certificate_that_is_not_accepted_is_final(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []

    def refuse(*_: object, **__: object) -> requests.Response:
        calls.append(None)
        inner = ssl.SSLCertVerificationError(1, "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed")
        raise requests.exceptions.SSLError(inner)

    monkeypatch.setattr(requests.adapters.HTTPAdapter, "send", refuse)
    with pytest.raises(DownloadError, match=r"certificate is not accepted .*REQUESTS_CA_BUNDLE"):
        fetch("https://secure.example/tiny.pt", sha256=SHA256, directory=tmp_path, policy=QUICK)
    assert len(calls) == 1


def test_redirects_are_followed_and_end(server: Server, tmp_path: Path) -> None:
    server.answers = [status(302, Location="/elsewhere/tiny.pt"), status(307, Location=server.url), File()]
    assert get(server, tmp_path).read_bytes() == BODY
    server.answers = [status(302, Location="/round")]
    with pytest.raises(DownloadError, match="Exceeded 10 redirects"):
        get(server, tmp_path, filename="b.pt")


def test_the_body_of_a_redirect_is_not_read(server: Server, tmp_path: Path) -> None:
    server.answers = [raw("HTTP/1.1 302 Found\nLocation: /x\nTransfer-Encoding: chunked\n\n", endless=True), File()]
    assert get(server, tmp_path).read_bytes() == BODY


@pytest.mark.parametrize("location", ["file:///etc/passwd", "http://[::1/x.pt"])
def test_a_redirect_out_of_the_web_is_refused(server: Server, tmp_path: Path, location: str) -> None:
    server.answers = [status(302, Location=location)]
    with pytest.raises(DownloadError):
        get(server, tmp_path)
    assert len(server.requests) == 1


def test_a_redirect_from_https_to_http_is_never_followed(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The https answer is a stand-in below requests' redirect logic; the http server is real and hears nothing."""
    send = requests.adapters.HTTPAdapter.send

    def answer(self: object, request: requests.PreparedRequest, **options: object) -> requests.Response:
        assert request.url is not None
        if not request.url.startswith("https://"):
            return send(self, request, **options)  # type: ignore[arg-type]
        response = requests.Response()
        response.status_code = 302
        response.url = request.url
        response.request = request
        response.raw = io.BytesIO()
        response.headers["Location"] = server.url + "?signature=SECRET"
        return response

    monkeypatch.setattr(requests.adapters.HTTPAdapter, "send", answer)
    with pytest.raises(DownloadError, match="not encrypted") as caught:
        fetch("https://secure.example/tiny.pt", sha256=SHA256, directory=tmp_path, policy=QUICK)
    assert server.requests == []
    assert "SECRET" not in str(caught.value)


def test_credentials_stay_with_their_host(server: Server, tmp_path: Path) -> None:
    with Server() as other:
        thread = threading.Thread(target=other.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        server.answers = [status(302, Location=other.url)]
        fetch(server.url.replace("//", "//me:SECRET@"), sha256=SHA256, directory=tmp_path, policy=QUICK)
        other.shutdown()
        thread.join()
    assert server.asked("Authorization") != [None]
    assert other.asked("Authorization") == [None]


def test_messages_and_notes_hold_no_secrets(server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="clip")
    url = server.url.replace("//", "//me:SECRET@") + "?signature=SECRET"
    for answers in ([status(503), status(404)], [File(cut_after=500_000), status(503)]):
        server.answers = answers
        server.requests.clear()
        with pytest.raises(DownloadError) as caught:
            fetch(url, sha256=SHA256, directory=tmp_path, policy=QUICK)
        assert "SECRET" not in str(caught.value)
    assert len(caplog.records) >= 4
    assert "SECRET" not in caplog.text
    assert "SECRET" not in (tmp_path / ".everyclip" / "tiny.pt.part.json").read_text()


def test_nothing_listening_at_an_address_with_secrets_does_not_tell_them(tmp_path: Path) -> None:
    with Server() as server:
        url = server.url + "?signature=SECRET"
    with pytest.raises(DownloadError) as caught:
        fetch(url, sha256=None, directory=tmp_path, policy=QUICK)
    assert "SECRET" not in str(caught.value)


# --- Size and space ---------------------------------------------------------------------------------------------------


def test_a_body_announced_larger_than_the_limit_is_not_read(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=rf"has {len(BODY)} bytes, the limit is 1000; pass max_bytes="):
        get(server, tmp_path, max_bytes=1000)
    assert records(tmp_path) == {"tiny.pt.lock"}


def test_an_endless_body_is_cut_at_the_limit(server: Server, tmp_path: Path) -> None:
    server.answers = [raw("HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n", endless=True)]
    with pytest.raises(DownloadError, match="does not end at the limit of 300000 bytes"):
        get(server, tmp_path, max_bytes=300_000)
    assert records(tmp_path) == {"tiny.pt.lock"}


def test_a_file_larger_than_the_free_space_is_not_begun(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: usage._replace(free=len(BODY) - 1))
    with pytest.raises(DownloadError, match=rf"{len(BODY)} bytes are still to come, {len(BODY) - 1} are free"):
        get(server, tmp_path)
    assert partial(tmp_path).stat().st_size == 0


def test_a_disk_that_fills_up_is_said_and_the_download_can_go_on(server: Server, tmp_path: Path) -> None:
    """A limit on file sizes fails the write as a full disk or quota does (EFBIG for ENOSPC)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, hard))  # Python ignores the signal that goes with it
    try:
        with pytest.raises(DownloadError, match=rf"no space for tiny.pt after \d+ bytes \({os.strerror(errno.EFBIG)}"):
            get(server, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not (tmp_path / "tiny.pt").exists()
    assert get(server, tmp_path).read_bytes() == BODY
    assert server.asked("Range")[1] is not None


# --- Several processes ------------------------------------------------------------------------------------------------

CHILD = """
import sys
from clip.checkpoints.download import fetch
print("ready", flush=True)
sys.stdin.readline()
print(fetch(sys.argv[1], sha256=sys.argv[2], directory=sys.argv[3]))
"""


@contextlib.contextmanager
def child(server: Server, directory: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that is about to download and waits for a line on its input."""
    command = [sys.executable, "-c", CHILD, server.url, SHA256, str(directory)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


def test_two_processes_at_once_download_once(server: Server, tmp_path: Path) -> None:
    server.answers = [File(bytes_per_second=2e6)]
    with child(server, tmp_path) as first, child(server, tmp_path) as second:
        for process in (first, second):
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        for process in (first, second):
            assert process.communicate(timeout=30)[0].strip() == str(tmp_path / "tiny.pt")
    assert len(server.requests) == 1
    assert (tmp_path / "tiny.pt").read_bytes() == BODY


def test_a_killed_process_leaves_neither_a_lock_nor_a_half_file_and_is_continued(
    server: Server, tmp_path: Path
) -> None:
    server.answers = [File(bytes_per_second=5e5), File()]
    with child(server, tmp_path) as process:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
        deadline = time.monotonic() + 20
        while not (partial(tmp_path).exists() and partial(tmp_path).stat().st_size > 100_000):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    at_hand = partial(tmp_path).stat().st_size
    assert 100_000 < at_hand < len(BODY)
    assert not (tmp_path / "tiny.pt").exists()
    assert get(server, tmp_path).read_bytes() == BODY
    assert server.asked("Range") == [None, f"bytes={at_hand}-"]


def test_threads_of_one_process_share_a_download_too(server: Server, tmp_path: Path) -> None:
    server.answers = [File(bytes_per_second=5e6)]
    threads = [threading.Thread(target=get, args=(server, tmp_path)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "tiny.pt").read_bytes() == BODY
    assert len(server.requests) == 1


def test_partial_files_that_nobody_continued_are_removed(server: Server, tmp_path: Path) -> None:
    (tmp_path / ".everyclip").mkdir()
    old, young = (tmp_path / ".everyclip" / f"{name}.part" for name in ("old", "young"))
    for path in (old, young):
        path.write_bytes(b"x")
        path.with_name(path.name + ".json").write_text("{}")
    os.utime(old, (time.time() - 15 * 86400,) * 2)
    os.utime(young, (time.time() - 13 * 86400,) * 2)
    mine = tmp_path / "mine.part"  # not in our folder, so not ours
    mine.touch()
    os.utime(mine, (0, 0))
    get(server, tmp_path)
    assert records(tmp_path) == {"old.lock", "young.part", "young.part.json", "tiny.pt.lock", "tiny.pt.verified"}
    assert mine.exists()


def test_an_old_partial_file_of_the_same_download_is_continued(server: Server, tmp_path: Path) -> None:
    leave_partial(server, tmp_path, 500_000)
    os.utime(partial(tmp_path), (0, 0))
    server.answers = [File()]
    assert get(server, tmp_path).read_bytes() == BODY
    assert server.asked("Range") != [None]


def test_an_old_partial_file_whose_lock_is_held_is_left_alone(server: Server, tmp_path: Path) -> None:
    (tmp_path / ".everyclip").mkdir()
    old = tmp_path / ".everyclip" / "old.part"
    old.touch()
    os.utime(old, (0, 0))
    with download._locked(old.with_suffix(".lock")):
        get(server, tmp_path)
    assert old.exists()


# --- Proxies, mirror, offline -----------------------------------------------------------------------------------------


def test_the_usual_proxy_variables_are_heeded(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", server.base)
    fetch("http://unreachable.invalid/x/tiny.pt", sha256=SHA256, directory=tmp_path, policy=QUICK)
    assert [path for path, _ in server.requests] == ["http://unreachable.invalid/x/tiny.pt"]


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_that_does_not_answer_is_named_without_its_password(
    scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(scheme + "_proxy", "http://me:SECRET@127.0.0.1:1")
    with pytest.raises(DownloadError, match=r"no connection to the proxy \(.*refused\)") as caught:
        fetch(f"{scheme}://host.invalid/x.pt?signature=SECRET", sha256=None, directory=tmp_path, policy=QUICK)
    assert "SECRET" not in str(caught.value)
    assert "kept" not in str(caught.value)  # there is nothing yet


@pytest.mark.parametrize("slash", ["", "/"])
def test_a_mirror_replaces_scheme_and_host_and_keeps_the_path(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slash: str
) -> None:
    monkeypatch.setenv("EVERYCLIP_MIRROR", server.base + "/weights" + slash)
    path = fetch(f"https://unreachable.invalid{PATH}?v=1", sha256=SHA256, directory=tmp_path, policy=QUICK)
    assert path.read_bytes() == BODY
    assert [path for path, _ in server.requests] == [f"/weights{PATH}?v=1"]


@pytest.mark.parametrize("mirror", ["mirror.example", "file:///weights", "https://", "https://[::1"])
def test_a_mirror_that_is_no_web_address_is_refused(mirror: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERYCLIP_MIRROR", mirror)
    with pytest.raises(ConfigError, match="EVERYCLIP_MIRROR"):
        mirrored("https://host.example/x.pt")


def test_another_servers_etag_is_not_sent_to_the_mirror(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_partial(server, tmp_path, 500_000)
    monkeypatch.setenv("EVERYCLIP_MIRROR", server.base + "/weights")
    server.answers = [File(etag='"of the mirror"')]
    assert get(server, tmp_path).read_bytes() == BODY
    assert [r is None for r in server.asked("Range")] == [False]  # the hash is known: going on is safe
    assert server.asked("If-Range") == [None]


def test_offline_nothing_is_asked_and_the_error_says_what_to_put_where(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVERYCLIP_OFFLINE", "1")
    with pytest.raises(DownloadError) as caught:
        get(server, tmp_path / "absent")
    for part in ("EVERYCLIP_OFFLINE", server.url, str(tmp_path / "absent" / "tiny.pt"), SHA256):
        assert part in str(caught.value)
    assert not (tmp_path / "absent").exists()
    (tmp_path / "tiny.pt").write_bytes(BODY)
    assert get(server, tmp_path) == tmp_path / "tiny.pt"
    (tmp_path / "tiny.pt").write_bytes(OTHER)
    with pytest.raises(ChecksumError, match=hashlib.sha256(OTHER).hexdigest()):
        get(server, tmp_path)
    assert server.requests == []


@pytest.mark.parametrize(
    ("value", "expected"), [("1", True), ("TRUE", True), ("on", True), ("0", False), ("", False), ("no", False)]
)
def test_offline_is_a_yes_or_a_no(value: str, expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERYCLIP_OFFLINE", value)
    assert download.is_offline() is expected


def test_offline_that_is_neither_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERYCLIP_OFFLINE", "maybe")
    with pytest.raises(ConfigError, match="'maybe'"):
        download.is_offline()


def test_the_default_folder_is_openais(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert default_directory() == tmp_path / ".cache" / "clip"


# --- Small things -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("field_name", ["connect_seconds", "stall_seconds", "attempts", "useful_bytes"])
def test_a_policy_that_never_ends_or_starts_is_refused(field_name: str) -> None:
    with pytest.raises(ConfigError, match=f"{field_name} is 0; it must be positive"):
        RetryPolicy(**{field_name: 0})


def test_importing_and_a_file_at_hand_load_no_network_library(tmp_path: Path) -> None:
    (tmp_path / "tiny.pt").write_bytes(BODY)
    code = (
        "import sys; from clip.checkpoints import download, verified, registry, hub\n"
        "download.fetch('https://host.example/tiny.pt', sha256=sys.argv[1], directory=sys.argv[2])\n"
        "print(sorted({'torch', 'requests', 'filelock', 'huggingface_hub', 'urllib3'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code, SHA256, str(tmp_path)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "[]"
