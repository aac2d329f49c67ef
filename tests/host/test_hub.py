"""Files of a model hub, from a server of this machine that answers as the hub does."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import importlib.util
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stbench.devices.inventory import parse_inventory
from stbench.errors import ModelError
from stbench.models import hub
from stbench.sweeps.prepare import label_name
from tests.conftest import require
from tests.host.conftest import Sandbox

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SECRET = "hf_thisIsNoTokenOfAnybody"
# More than the library reads at once, so that a cut falls into the middle.
BIG = os.urandom(1 << 20) * 24
SMALL = b"GGUF" * 1000


class Hub(http.server.ThreadingHTTPServer):
    """One repository, me/models. ``stop_after``: bytes after which an answer hangs, once."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.files: dict[str, bytes] = {}
        self.promised: dict[str, str] = {}
        self.stop_after = 0
        self.hangs = threading.Event()
        self.requests: list[tuple[str, str, str, str]] = []


class Answers(http.server.BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: Any) -> None:
        """Nothing on stderr."""

    def do_HEAD(self) -> None:
        self._answer(head=True)

    def do_GET(self) -> None:
        self._answer(head=False)

    def _answer(self, head: bool) -> None:
        wanted = self.headers.get("Range", "")
        self.server.requests.append((self.command, self.path, wanted, self.headers.get("Authorization", "")))
        found = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.path)
        if found is None or found[1] != "me/models":
            return self._refuse(404, "RepoNotFound")
        if found[2] not in ("main", "v1", COMMIT):
            return self._refuse(404, "RevisionNotFound")
        if found[3] == "gated.gguf" and self.headers.get("Authorization") != f"Bearer {SECRET}":
            return self._refuse(403, "GatedRepo")
        data = self.server.files.get(found[3])
        if data is None:
            return self._refuse(404, "EntryNotFound")
        digest = self.server.promised.get(found[3], hashlib.sha256(data).hexdigest())
        start = int(wanted.removeprefix("bytes=").rstrip("-") or 0)
        self.send_response(206 if wanted else 200)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("X-Linked-Etag", f'"{digest}"')
        self.send_header("X-Linked-Size", str(len(data)))
        self.send_header("ETag", f'"{digest}"')
        self.send_header("Content-Length", str(len(data) - start))
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        if head:
            return None
        if self.server.stop_after:
            self.wfile.write(data[start : self.server.stop_after])
            self.server.stop_after = 0
            self.server.hangs.set()
            # Until the one who fetches is killed.
            with contextlib.suppress(OSError):
                self.connection.recv(1)
            return None
        self.wfile.write(data[start:])
        return None

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", f"no, {code}")
        self.send_header("Content-Length", "0")
        self.end_headers()


@pytest.fixture
def server() -> Iterator[Hub]:
    require(importlib.util.find_spec("huggingface_hub") is not None, "no huggingface_hub: pip install")
    with Hub() as made:
        threading.Thread(target=made.serve_forever, daemon=True).start()
        yield made
        made.shutdown()


FETCH = """
import sys
from stbench.models import hub
from stbench.errors import StbenchError
try:
    print(hub.fetch(sys.argv[1], lambda stage, done, total: print(stage, done, total, flush=True)))
except StbenchError as error:
    print("refused:", error, "| try:", error.hint)
"""


def start(
    server: Hub, home: Path, reference: str, token: str = "", offline: bool = False
) -> subprocess.Popen[str]:
    """In a process of its own: the library reads its environment once."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    environment.update(
        HF_ENDPOINT=f"http://127.0.0.1:{server.server_port}",
        HF_HOME=str(home / "hf"),
        XDG_CACHE_HOME=str(home / "cache"),
        HF_HUB_DISABLE_TELEMETRY="1",
        # Within 10 s, as they are by default, an answer that hangs would be asked for again.
        HF_HUB_ETAG_TIMEOUT="120",
        HF_HUB_DOWNLOAD_TIMEOUT="120",
        **({"HF_TOKEN": token} if token else {}),
        **({"HF_HUB_OFFLINE": "1"} if offline else {}),
    )
    return subprocess.Popen(
        [sys.executable, "-c", FETCH, reference],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def fetch(server: Hub, home: Path, reference: str, token: str = "", offline: bool = False) -> list[str]:
    out, _ = start(server, home, reference, token, offline).communicate(timeout=300)
    assert "Traceback" not in out, out
    return out.splitlines()


def test_a_file_is_fetched_once(server: Hub, tmp_path: Path) -> None:
    server.files["dir/m.gguf"] = BIG
    lines = fetch(server, tmp_path, "hf:me/models/dir/m.gguf@v1")
    path = Path(lines[-1])
    assert path.read_bytes() == BIG
    assert f"fetch m.gguf {len(BIG)} {len(BIG)}" in lines
    assert f"hash m.gguf {len(BIG)} {len(BIG)}" in lines
    before = [request for request in server.requests if request[0] == "GET"]
    assert fetch(server, tmp_path, "hf:me/models/dir/m.gguf@v1") == [str(path)]
    assert [request for request in server.requests if request[0] == "GET"] == before, "fetched again"


def test_a_killed_fetch_goes_on_where_it_was(server: Hub, tmp_path: Path) -> None:
    server.files["m.gguf"] = BIG
    server.stop_after = len(BIG) // 2
    running = start(server, tmp_path, "hf:me/models/m.gguf")
    assert server.hangs.wait(120)
    deadline = time.monotonic() + 60
    while not any(
        path.stat().st_size >= len(BIG) // 4 for path in tmp_path.glob("cache/stbench/hub/*/*/*.part")
    ):
        assert time.monotonic() < deadline, "nothing was written"
        time.sleep(0.05)
    running.kill()
    running.communicate()
    lines = fetch(server, tmp_path, "hf:me/models/m.gguf")
    assert Path(lines[-1]).read_bytes() == BIG
    ranges = [request[2] for request in server.requests if request[0] == "GET" and request[2]]
    assert len(ranges) == 1
    assert int(ranges[0].removeprefix("bytes=").rstrip("-")) >= len(BIG) // 4


def test_other_bytes_than_the_hub_promised_are_deleted(server: Hub, tmp_path: Path) -> None:
    server.files["m.gguf"] = SMALL
    server.promised["m.gguf"] = "ab" * 32
    (line,) = [line for line in fetch(server, tmp_path, "hf:me/models/m.gguf") if line.startswith("refused")]
    assert "the hub promised abababababab...; it was deleted" in line
    assert not list(tmp_path.glob("cache/stbench/hub/*/*/*.gguf*[!k]"))
    del server.promised["m.gguf"]
    assert Path(fetch(server, tmp_path, "hf:me/models/m.gguf")[-1]).read_bytes() == SMALL
    # A small file that is in git itself has git's digest.
    server.promised["m.gguf"] = hashlib.sha1(b"blob 4000\0" + SMALL).hexdigest()
    assert Path(fetch(server, tmp_path / "other", "hf:me/models/m.gguf")[-1]).read_bytes() == SMALL


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("hf:me/other/m.gguf", "no such repository, or a private one"),
        ("hf:me/models/m.gguf@v9", "the repository has no revision 'v9'"),
        ("hf:me/models/absent.gguf", "the repository has no such file"),
        ("hf:me/models/gated.gguf", "the repository is gated"),
    ],
)
def test_refusals_are_explained(server: Hub, tmp_path: Path, reference: str, said: str) -> None:
    server.files.update({"m.gguf": b"GGUF", "gated.gguf": b"GGUF"})
    line = fetch(server, tmp_path, reference)[-1]
    assert line.startswith(f"refused: {reference}: ")
    assert said in line


def test_a_token_opens_and_is_left_nowhere(server: Hub, tmp_path: Path) -> None:
    server.files["gated.gguf"] = b"GGUF" * 100
    lines = fetch(server, tmp_path, "hf:me/models/gated.gguf", SECRET)
    assert Path(lines[-1]).read_bytes() == b"GGUF" * 100
    assert SECRET not in "".join(lines)
    lines = fetch(server, tmp_path, "hf:me/models/absent.gguf", SECRET)
    assert SECRET not in "".join(lines)
    assert {request[3] for request in server.requests} == {f"Bearer {SECRET}"}
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert written
    assert not [path for path in written if SECRET.encode() in path.read_bytes()]


def test_no_hub_and_no_copy(tmp_path: Path, server: Hub) -> None:
    server.files["m.gguf"] = b"GGUF"
    there = fetch(server, tmp_path, "hf:me/models/m.gguf")[-1]
    asked = len(server.requests)
    assert fetch(server, tmp_path, "hf:me/models/m.gguf", offline=True)[-1] == there
    refused = fetch(server, tmp_path, "hf:me/models/other.gguf", offline=True)[-1]
    assert "the hub cannot be reached (" in refused
    assert "ffline" in refused
    assert len(server.requests) == asked
    server.shutdown()
    server.server_close()
    assert fetch(server, tmp_path, "hf:me/models/m.gguf")[-1] == there, "what is in the cache needs no hub"
    assert "the hub cannot be reached" in fetch(server, tmp_path, "hf:me/models/other.gguf")[-1]


@pytest.mark.parametrize(
    "wrong",
    ["hf:", "hf:me/models", "hf:me/models/m.bin", "hf:me/models/../m.gguf", "hf:me/models/m.gguf@a b"],
)
def test_references_that_are_none(wrong: str) -> None:
    with pytest.raises(ModelError, match="expected hf:owner/repository"):
        hub.fetch(wrong, lambda stage, done, total: None)


def test_a_reference_is_called_by_its_file_and_revision() -> None:
    named = {
        "hf:o/r/deep/f.gguf": "f",
        "hf:o/r/f.gguf@main": "f-main",
        "hf:o/r/f.gguf@refs/pr/3": "f-refs-pr-3",
        "hf:o/r/g.gguf@refs/pr/3": "g-refs-pr-3",
    }
    assert {name: label_name(name) for name in named} == named


def test_the_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(Exception, match="needs the Python package 'huggingface_hub'") as caught:
        hub.fetch("hf:me/models/m.gguf", lambda stage, done, total: None)
    assert getattr(caught.value, "hint", "") == "pip install 'stbench[hub]'"


def test_a_sweep_of_a_hub_s_file(server: Hub, sandbox: Sandbox, library_path: Path) -> None:
    """devices.yaml maps a name to the hub, and `stbench plan` plans with the file's own shape."""
    code, _, err = sandbox.run(
        "models", "make", "tiny-llama", "-o", "tiny.gguf", "--library", str(library_path)
    )
    assert code == 0, err
    server.files["tiny.gguf"] = Path("tiny.gguf").read_bytes()
    text = "devices:\n  local: {models: {mine: 'hf:me/models/tiny.gguf@main'}}\n"
    assert (parse_inventory(text.encode(), "devices.yaml").devices[0].models or {})["mine"].startswith("hf:")
    sandbox.write("devices.yaml", text)
    environment = {
        **os.environ,
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HOME": str(sandbox.directory / "hf"),
    }
    argv = ["plan", "--models", "mine", "--sparse-ffn", "on,off", "-n", "4", "--json", "--library"]
    done = subprocess.run(
        [sys.executable, "-m", "stbench.cli", *argv, str(library_path)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "the model has no ReLU experts" in json.dumps(json.loads(done.stdout)["notes"])
