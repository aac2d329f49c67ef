"""Many boards at once: this machine, boards behind cables of their own, an emulated one; and 24 of them."""

from __future__ import annotations

import base64
import contextlib
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from stbench.agent.wire import RunRecord
from tests.boards.conftest import Boards, Controller
from tests.boards.emulated import EmulatedBoard
from tests.boards.fleet import Desk, aarch64_library, booted, entry_of, is_measuring
from tests.boards.image_files import BUSYBOX
from tests.boards.sshd import ROOT, Board, make_key, tool, wait_for_socket, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
BESIDE = pytest.mark.beside("emulated fleet", seconds=140, nice=0)

# More than the threads of a machine, or of a pool, that somebody may have thought of.
MANY = 24
LOCAL = {"connector": "local", "threads": 2}
QUICK = {"silence": 5, "reconnect": 5}


@pytest.fixture
def emulated(
    request: pytest.FixtureRequest, tmp_path: Path, controller: Controller
) -> Iterator[EmulatedBoard]:
    """An emulated board that is trusted, and its library built."""
    shutil.copytree(aarch64_library(request), tmp_path / "cache", dirs_exist_ok=True)
    with booted(request, BUSYBOX, "cortex-a76") as board:
        with controller.known_hosts.open("a") as file:
            file.write(board.known_host + "\n")
        yield board


@pytest.fixture
def desk(tmp_path: Path, controller: Controller) -> Desk:
    return Desk(tmp_path / "desk")


def unplug(board: Board) -> None:
    """Packets vanish, where there is a cable; otherwise connections end and no more are taken."""
    if board.cable:
        board.cut()
    else:
        board.stop_sshd()


def plug_in(board: Board) -> None:
    if board.cable:
        board.mend()
    else:
        board.start_sshd()


def statuses(records: list[RunRecord]) -> dict[str, Counter[str]]:
    found: dict[str, Counter[str]] = {}
    for record in records:
        found.setdefault(record.device, Counter())[record.status] += 1
    return found


@BESIDE
def test_one_sweep_over_five_devices_ends_with_one_table(
    desk: Desk, boards: Boards, emulated: EmulatedBoard
) -> None:
    fleet = [boards(f"board-{n}", cable=ROOT) for n in (1, 2, 3)]
    entries = {board.name: board.device_keys(threads=2) for board in fleet}
    desk.devices({"local": LOCAL, **entries, "emulated": entry_of(emulated)})
    axes = ["--models", "tiny-smallthinker", "-pg", "4,4", "-r", "2", "--max-reruns", "0"]
    done = desk.run("sweep", *axes, "--campaign", "c")
    assert done.code == 0, done.err
    names = ["local", *entries, "emulated"]
    assert statuses(desk.records()) == {name: Counter(ok=2) for name in names}
    # Everywhere the same tokens, whatever the instruction set.
    outputs = {record.check.output_hash for record in desk.records() if record.check is not None}
    assert len(outputs) == 1
    table = (desk.directory / "reports" / "c" / "table.md").read_text()
    rows = [line for line in table.splitlines() if "tiny-smallthinker/dense/t2/pp4+tg4" in line]
    assert all(any(f"| {name}:tiny-" in row for row in rows) for name in names), table
    assert all(f"{name}:tiny-smallthinker" in done.out for name in names)


@BESIDE
def test_an_unplugged_board_leaves_the_others_alone_and_is_resumed(
    desk: Desk, boards: Boards, emulated: EmulatedBoard
) -> None:
    fleet = [boards(f"board-{n}", cable=ROOT) for n in (1, 2, 3)]
    entries = {board.name: board.device_keys() for board in fleet}
    entries["board-2"] = fleet[1].device_keys(timeouts=QUICK)
    desk.devices({"local": LOCAL, **entries, "emulated": entry_of(emulated)})
    sweep = ["--models", "fake:sleep=2", "--engines", "fake", "-n", "4", "-r", "4", "--campaign", "c"]
    with desk.started("sweep", *sweep) as process:
        desk.wait_for_records("board-2", 1, process)
        unplug(fleet[1])
        done = desk.ended(process)
    assert done.code == 3, done.err
    assert "board-2" in done.err
    assert "stbench sweep --resume" in done.err
    found = statuses(desk.records())
    assert all(found[name] == Counter(ok=4) for name in ("local", "board-1", "board-3", "emulated"))
    left = 4 - found["board-2"]["ok"]
    assert 0 < left < 4

    plug_in(fleet[1])
    resumed = desk.run("sweep", "--resume", "--campaign", "c")
    assert resumed.code == 0, resumed.err
    records = desk.records()
    assert statuses(records) == {name: Counter(ok=4) for name in ("local", *entries, "emulated")}
    assert len({record.id for record in records}) == len(records) == 20
    wait_until(lambda: not any(board.processes() for board in fleet), "no process stays")


def test_many_agents_at_once(desk: Desk, boards: Boards, request: pytest.FixtureRequest) -> None:
    fleet = [boards(f"board-{n:02}") for n in range(MANY)]
    desk.devices({board.name: board.device_keys() for board in fleet})
    sweep = ["--models", "fake:until=go", "--engines", "fake", "-n", "4", "-r", "1", "--campaign", "c"]
    signs = [board.work_dir / "go" for board in fleet]
    for go in signs:
        go.parent.mkdir(parents=True)
        go.touch()
    assert desk.run("sweep", *sweep, "--references-only").code == 0
    for go in signs:
        go.unlink()
    with desk.started("sweep", *sweep) as process:
        # No job ends before the sign, so that these are all at once.
        wait_until(lambda: all(map(is_measuring, fleet)), "all boards measure", 240)
        memory = sum(rss_bytes(pid) for board in fleet for pid in board.processes())
        for go in signs:
            go.touch()
        done = desk.ended(process)
    assert done.code == 0, done.err
    assert statuses(desk.records()) == {board.name: Counter(ok=1) for board in fleet}
    said = f"{MANY} boards: the controller took {done.peak_bytes / 1e6:.0f} MB and {done.cpu_s:.1f} s of CPU"
    reporter = request.config.pluginmanager.get_plugin("terminalreporter")
    assert reporter is not None
    reporter.write_line(f"{said}; the agents' own memory together: {memory / 1e6:.0f} MB")
    # The interpreter with what it imports is 150 MB of it.
    assert 0 < done.peak_bytes < 600e6


def rss_bytes(pid: int) -> int:
    """A process's own memory, without what it shares with others."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    return sum(int(kib) << 10 for kib in re.findall(r"Private_\w+: +(\d+) kB", text))


def test_no_secret_is_written_anywhere(
    desk: Desk, boards: Boards, controller: Controller, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key with a passphrase, held by an agent; one in a file; a token and a password in the environment."""
    held = tmp_path / "held" / "id_ed25519"
    make_key(held)
    passphrase = "passphrase-4b1d-of-the-held-key"
    command = [tool("ssh-keygen"), "-q", "-p", "-f", str(held), "-P", "", "-N", passphrase]
    plain = held.read_text()
    subprocess.run(command, check=True)
    public = held.with_name("id_ed25519.pub").read_text().strip()
    monkeypatch.setenv("HF_TOKEN", "hf_tokenOfTheModelHub0123456789")
    monkeypatch.setenv("SSHPASS", "password-of-nobody-77aa")
    with agent_with(plain, tmp_path, monkeypatch):
        by_agent = boards("by-agent", public_keys=(public,))
        by_agent.key = None
        by_file = boards("by-file")
        desk.devices({board.name: board.device_keys() for board in (by_agent, by_file)})
        sweep = ["--models", "fake", "--engines", "fake", "-n", "4", "-r", "1", "--campaign", "c"]
        done = desk.run("sweep", *sweep)
        assert done.code == 0, done.err
        refused = boards("refused", public_keys=())
        desk.devices({board.name: board.device_keys() for board in (by_agent, by_file, refused)})
        assert desk.run("sweep", *sweep[:-1], "d", "--verbose").code in (2, 3, 4)
        (desk.directory / "refused-err").write_bytes((desk.directory / "err").read_bytes())

    secrets = [passphrase, "hf_tokenOfTheModelHub0123456789", "password-of-nobody-77aa"]
    secrets += [*private_parts(plain), *private_parts(controller.key.read_text())]
    places = [desk.directory, tmp_path / "cache", by_agent.work_dir, by_file.work_dir, by_agent.home]
    files = [path for place in places for path in place.rglob("*") if path.is_file()]
    assert {"records.jsonl", "devices.yaml", "err"} <= {path.name for path in files}
    leaks = [f"{path}: {secret[:12]}..." for path in files for secret in secrets if leaked(secret, path)]
    assert leaks == []
    # The search itself finds what is there.
    assert any(leaked(secret, controller.key) for secret in secrets)


def leaked(secret: str, path: Path) -> bool:
    return secret.encode() in path.read_bytes()


def private_parts(key: str) -> list[str]:
    """The lines of a private key that hold its secret half, and that half as hexadecimal digits."""
    body = key.split("-----")[2].split()
    raw = base64.b64decode("".join(body))
    # Ends with: length and 64 bytes (seed and public key), comment, padding.
    at = raw.rindex(b"\x00\x00\x00\x40")
    return [*body[2:], raw[at + 4 : at + 36].hex(), base64.b64encode(raw[at + 4 : at + 36]).decode()[:40]]


@contextlib.contextmanager
def agent_with(key: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An SSH agent that holds a key, for as long as the context lasts."""
    path = folder / "agent.sock"
    agent = subprocess.Popen([tool("ssh-agent"), "-D", "-a", str(path)], stdout=subprocess.DEVNULL)
    try:
        wait_for_socket(path)
        monkeypatch.setenv("SSH_AUTH_SOCK", str(path))
        subprocess.run([tool("ssh-add"), "-q", "-"], input=key, text=True, check=True)
        yield
    finally:
        agent.terminate()
        agent.wait()
