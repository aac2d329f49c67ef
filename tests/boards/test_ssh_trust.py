"""Who a board is and who may log in: nothing is accepted unseen, and each refusal says what to do."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from stbench import cli
from stbench.connectors import hostkeys
from stbench.connectors.ssh import SshConnector
from stbench.connectors.ssh_route import route
from stbench.devices.inventory import Device
from stbench.errors import HostKeyRefused, InputError, LoginRefused, StbenchError, Unreachable
from tests.boards.conftest import Boards, Controller, device_of
from tests.boards.sshd import ROOT, Board, make_key, tool, wait_for_socket
from tests.conftest import require


def works(device: Device) -> bool:
    connector = SshConnector(device)
    connector.connect()
    connector.close()
    return True


def refused(device: Device, kind: type[StbenchError], pattern: str) -> StbenchError:
    with pytest.raises(kind, match=pattern) as caught:
        SshConnector(device).connect()
    assert caught.value.exit_code == 4
    return caught.value


def fingerprint_of(board: Board) -> str:
    """As the board's owner would read it."""
    command = [tool("ssh-keygen"), "-lf", board.directory / "host_key.pub"]
    found = re.search(
        r"SHA256:\S+", subprocess.run(command, capture_output=True, text=True, check=True).stdout
    )
    assert found is not None
    return found[0]


def on_terminal(argv: Sequence[str], answers: Sequence[tuple[str, str]]) -> tuple[int, str]:
    """Runs stbench on a terminal of its own; each answer waits for its question. (exit code, all it said)."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, "-m", "stbench.cli", *argv])
    text, answered, left, deadline = "", 0, list(answers), time.monotonic() + 200
    while time.monotonic() < deadline:
        if not select.select([terminal], [], [], 1.0)[0]:
            continue
        try:
            text += os.read(terminal, 4096).decode("utf-8", "replace")
        except OSError:
            break
        if left and left[0][0] in text[answered:]:
            answered = len(text)
            os.write(terminal, f"{left.pop(0)[1]}\n".encode())
    else:
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    os.close(terminal)
    return os.waitstatus_to_exitcode(status), text


@pytest.fixture
def stranger(boards: Boards) -> Board:
    return boards("rpi5", trust=False)


@pytest.fixture
def devices(stranger: Board, tmp_path: Path) -> str:
    path = tmp_path / "devices.yaml"
    path.write_text(f"devices:\n{stranger.device_yaml()}")
    return str(path)


def test_an_unknown_host_key_is_refused(stranger: Board) -> None:
    error = refused(
        device_of(stranger), HostKeyRefused, "rpi5: the host key of .* is unknown: ssh-ed25519 SHA256:"
    )
    assert fingerprint_of(stranger) in str(error)
    assert "stbench devices trust rpi5" in error.hint
    assert "Accepted" not in (stranger.directory / "sshd.log").read_text()


def test_a_changed_host_key_is_refused_with_both_fingerprints(board: Board, controller: Controller) -> None:
    assert works(device_of(board))
    before = fingerprint_of(board)
    board.new_host_key()
    error = refused(
        device_of(board), HostKeyRefused, "board: the host key of .* has changed: now ssh-ed25519 "
    )
    assert f"now ssh-ed25519 {fingerprint_of(board)}, known is ssh-ed25519 {before}" in str(error)
    assert f"{controller.known_hosts}:1" in str(error)
    (command,) = re.findall(r"ssh-keygen -f \S+ -R '\S+'", error.hint)
    # The hint, followed word by word.
    subprocess.run(["sh", "-c", command], check=True, capture_output=True)
    refused(device_of(board), HostKeyRefused, "is unknown")


def test_trust_needs_the_right_fingerprint(
    stranger: Board, devices: str, controller: Controller, capsys: pytest.CaptureFixture[str]
) -> None:
    trust = ["devices", "trust", "rpi5", "--devices", devices]
    assert cli.main(trust) == 4
    said = capsys.readouterr().err
    assert fingerprint_of(stranger) in said
    assert f"--yes-this-fingerprint {fingerprint_of(stranger)}" in said
    assert cli.main([*trust, "--yes-this-fingerprint", "SHA256:AAAA"]) == 4
    assert f"shows the host key {fingerprint_of(stranger)}, not SHA256:AAAA" in capsys.readouterr().err
    assert not controller.known_hosts.exists()

    assert cli.main([*trust, "--yes-this-fingerprint", fingerprint_of(stranger)]) == 0
    assert "pinned in" in capsys.readouterr().out
    assert stat.S_IMODE(controller.known_hosts.stat().st_mode) == 0o600
    assert "Accepted" not in (stranger.directory / "sshd.log").read_text(), "it logs in nowhere"
    assert works(device_of(stranger))
    assert cli.main([*trust, "--json"]) == 0
    assert '"file": null' in capsys.readouterr().out

    before = fingerprint_of(stranger)
    stranger.new_host_key()
    assert cli.main([*trust, "--yes-this-fingerprint", fingerprint_of(stranger)]) == 4
    said = capsys.readouterr().err
    assert before in said
    assert fingerprint_of(stranger) in said
    assert cli.main(["devices", "trust", "rpi", "--devices", devices]) == 2


@pytest.mark.parametrize(("answer", "code"), [("no", 4), ("y", 4), ("yes", 0)])
def test_trust_asks_on_a_terminal(
    stranger: Board, devices: str, controller: Controller, answer: str, code: int
) -> None:
    argv = ["devices", "trust", "rpi5", "--devices", devices]
    found, text = on_terminal(argv, [("(yes/no)", answer)])
    assert found == code, text
    assert fingerprint_of(stranger) in re.sub(r"\s+", "", text)
    assert controller.known_hosts.exists() == (code == 0)


def test_known_hosts_of_ssh_count_too(stranger: Board, controller: Controller) -> None:
    theirs = controller.home / ".ssh" / "known_hosts"
    other = make_key(controller.home / "other")
    where = f"[{stranger.host}]:{stranger.port}"
    for text in (
        stranger.known_hosts_line(),
        f"# a comment\n\n@cert-authority * {other}\n{where} {other}\n{stranger.known_hosts_line()}",
        f"nobody,[127.0.0.?]:*,!{where}x {stranger.public_host_key}\n",
    ):
        theirs.write_text(text)
        assert works(device_of(stranger))
    theirs.write_text(stranger.known_hosts_line())
    subprocess.run([tool("ssh-keygen"), "-q", "-H", "-f", theirs], check=True, capture_output=True)
    assert where not in theirs.read_text()
    assert works(device_of(stranger))
    for text in (f"*,!{where} {stranger.public_host_key}\n", "garbage\n", f"{where} ssh-ed25519 AAAA\n"):
        theirs.write_text(text)
        refused(device_of(stranger), HostKeyRefused, "is unknown")
    theirs.write_text(f"{stranger.known_hosts_line()}@revoked * {stranger.public_host_key}\n")
    refused(device_of(stranger), HostKeyRefused, "was revoked")


def test_a_login_that_is_refused(boards: Boards, controller: Controller) -> None:
    board = boards(public_keys=())
    error = refused(device_of(board), LoginRefused, r"board: .* lets none of our keys in \(.*id_ed25519\)$")
    assert error.hint.startswith(f"ssh-copy-id -p {board.port} {board.user}@")
    absent = device_of(board, key=str(controller.home / "absent"))
    refused(absent, LoginRefused, "absent: no such file")
    controller.key.unlink()
    refused(device_of(board, key=""), LoginRefused, "there is no key to offer")


def test_a_login_that_breaks_off_is_no_refusal(boards: Boards) -> None:
    """As when the link goes in that moment: it may be tried again, which a refusal may not."""
    board = boards(public_keys=(), config="MaxAuthTries 1")
    refused(device_of(board, key=""), Unreachable, "cannot be reached: the login broke off: ")


def test_a_key_of_the_agent(boards: Boards, controller: Controller, monkeypatch: pytest.MonkeyPatch) -> None:
    board = boards()
    sock = controller.home / "agent"
    agent = subprocess.Popen([tool("ssh-agent"), "-D", "-a", str(sock)], stdout=subprocess.DEVNULL)
    try:
        wait_for_socket(sock)
        monkeypatch.setenv("SSH_AUTH_SOCK", str(sock))
        subprocess.run([tool("ssh-add"), "-q", controller.key], check=True)
        controller.key.unlink()
        assert works(device_of(board, key=""))
    finally:
        agent.terminate()
        agent.wait()


def test_a_key_with_a_passphrase(boards: Boards, controller: Controller, devices: str) -> None:
    board = boards("rpi5b")
    change = ["-q", "-p", "-P", "", "-N", "open sesame", "-f", controller.key]
    subprocess.run([tool("ssh-keygen"), *change], check=True, capture_output=True)
    refused(device_of(board), LoginRefused, "has a passphrase: ssh-add it, or run on a terminal")
    Path(devices).write_text(f"devices:\n{board.device_yaml()}")
    answers = [("id_ed25519: ", "wrong"), ("id_ed25519: ", "open sesame")]
    code, text = on_terminal(["devices", "--devices", devices], answers)
    assert code == 0, text
    assert "sesame" not in text


@pytest.fixture
def by_password(boards: Boards, tmp_path: Path) -> Board:
    """A board that takes root's password, which is not this machine's."""
    require(ROOT, "another /etc/shadow needs root")
    config = "PasswordAuthentication yes\nKbdInteractiveAuthentication no\nPermitRootLogin yes"
    board = boards(config=config, public_keys=())
    hashed = subprocess.run(
        [tool("openssl"), "passwd", "-6", "hunter2"], capture_output=True, text=True, check=True
    ).stdout.strip()
    (tmp_path / "shadow").write_text(f"root:{hashed}:19000:0:99999:7:::\n")
    board.run(["mount", "--bind", tmp_path / "shadow", "/etc/shadow"])
    # sshd has its own mounts: those of the board.
    board.stop_sshd()
    board.start_sshd()
    return board


def test_a_password_is_asked_for_and_kept_nowhere(by_password: Board, devices: str, tmp_path: Path) -> None:
    refused(device_of(by_password), LoginRefused, "lets none of our keys in")
    Path(devices).write_text(f"devices:\n{by_password.device_yaml()}")
    code, text = on_terminal(["devices", "--devices", devices], [("password of", "hunter2")])
    assert code == 0, text
    assert "hunter2" not in text
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert b"hunter2" not in path.read_bytes(), path


def test_ssh_config_says_the_rest(boards: Boards, controller: Controller) -> None:
    board = boards(trust=False)
    elsewhere = controller.home / "keys" / "lab"
    elsewhere.parent.mkdir()
    controller.key.rename(elsewhere)
    (controller.home / ".ssh" / "lab.conf").write_text(
        f"Host lab-*\n  Port {board.port}\n  User {board.user}\n  IdentityFile ~/keys/lab\n"
    )
    (controller.home / ".ssh" / "config").write_text(
        "Include lab.conf\nHost lab-1\n  HostName 127.0.0.1\n  HostKeyAlias lab-one\n  IdentitiesOnly yes\n"
    )
    device = Device("b", connector="ssh", ssh_config="lab-1", work_dir=str(board.work_dir))
    error = refused(device, HostKeyRefused, "the host key of lab-one is unknown")
    assert "trust b" in error.hint
    controller.known_hosts.write_text(f"lab-one {board.public_host_key}\n")
    assert works(device)
    # What devices.yaml says wins.
    refused(Device("b", connector="ssh", ssh_config="lab-1", port=1), StbenchError, ":1 cannot be reached")
    (hop,) = route(Device("b", connector="ssh", host="lab-1", user="me"))
    assert (hop.host, hop.user, hop.port, hop.only_named_keys) == ("127.0.0.1", "me", board.port, True)


def test_jumps(boards: Boards, controller: Controller) -> None:
    first, second, board = boards("first"), boards("second"), boards("far", cable=ROOT)
    chain = ",".join(f"{hop.user}@{hop.host}:{hop.port}" for hop in (first, second))
    assert works(device_of(board, proxy_jump=chain))
    for hop in (first, second):
        assert "Accepted publickey" in (hop.directory / "sshd.log").read_text()
    (controller.home / ".ssh" / "config").write_text(
        f"Host one\n  HostName {first.host}\n  Port {first.port}\n  User {first.user}\n"
        f"Host two\n  HostName {second.host}\n  Port {second.port}\n  User {second.user}\n  ProxyJump one\n"
        f"Host far\n  HostName {board.host}\n  Port {board.port}\n  User {board.user}\n  ProxyJump two\n"
    )
    device = Device("far", connector="ssh", ssh_config="far", work_dir=str(board.work_dir))
    assert [hop.port for hop in route(device)] == [first.port, second.port, board.port]
    assert works(device)
    # A jump host is checked like a board, before anything is sent through it.
    second.new_host_key()
    refused(device, HostKeyRefused, rf"far: the host key of \[127.0.0.1\]:{second.port} has changed")


@pytest.mark.parametrize(
    ("config", "pattern"),
    [
        ("Host a\n  ProxyJump b\nHost b\n  ProxyJump a\n", "ProxyJump goes in a circle"),
        ("Host a\n  ProxyCommand nc %h %p\n", "through a ProxyCommand, which stbench cannot"),
        ("Host a\n  ProxyJump x:y:z\n", "ProxyJump: 'x:y:z' is not"),
    ],
)
def test_configurations_that_cannot_be_followed(controller: Controller, config: str, pattern: str) -> None:
    (controller.home / ".ssh" / "config").write_text(config)
    with pytest.raises(InputError, match=pattern):
        SshConnector(Device("b", connector="ssh", ssh_config="a")).connect()


def test_names_in_known_hosts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert hostkeys.known_name("Pi.Local", 22) == "pi.local"
    assert hostkeys.known_name("pi", 8022) == "[pi]:8022"
    assert hostkeys.known_name("pi", 8022, "alias") == "alias"
    monkeypatch.setenv("XDG_CONFIG_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert hostkeys.pinned_file() == tmp_path / ".config" / "stbench" / "known_hosts"
