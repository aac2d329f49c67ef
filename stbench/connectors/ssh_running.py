"""A command on a board: a small sh around it knows its process group, reports how it ended, and ends it when
nobody is left to read it.

SSH itself gives no way to do that: sshd leaves commands running when their connection goes, delivers signals
only in some versions, and paramiko does not tell a signal from a lost link.
"""

from __future__ import annotations

import contextlib
import re
import shlex
import threading
import time
from collections.abc import Iterator, Sequence

import paramiko

from stbench.connectors.base import MAX_LINE_BYTES, Ending
from stbench.connectors.ssh_link import Link
from stbench.errors import DeviceError, LinkLost

STDERR_TAIL_BYTES = 16 << 10
CANCEL_GRACE_S = 5.0
# How often waiting threads look at their deadlines.
TICK_S = 0.5
# sh counts time by sleeping: one short process every so many seconds on a board that is being measured.
WATCH_S = 2
SPARE_ROUNDS = 15

# One line, no quotes but double ones, no backslash and no exclamation mark: the login shell may be fish or
# csh. $1 is this text itself; then: rounds of the watch, working directory, command. sshd makes every
# session a process group; a server that does not gets one from setsid. Shells take 128 + n for signal n.
# Who could still be told the pid read its parent while that was sshd; else sshd went before the start, the
# watch would take whoever inherits orphans for it, and the command must not begin.
_AROUND = "; ".join(
    [
        "read -r a b c d g z < /proc/$$/stat",
        '[ "$g" = $$ ] || exec setsid sh -c "$1" sh "$@"',
        "n=$2",
        'cd "$3" || exit 126',
        "shift 3",
        "trap : TERM HUP INT PIPE",
        '(trap "" TERM HUP INT; i=0; '
        'while [ $i -lt $n ] && read -r a b c p z < /proc/$$/stat && [ "$p" = "$d" ]; '
        f"do sleep {WATCH_S}; i=$((i+1)); done; "
        "kill -TERM 0; sleep 5; kill -KILL 0) < /dev/null > /dev/null 2>&1 & "
        'echo "::stbench pid $$" >&2 || kill -KILL 0',
        '"$@"',
        "s=$?",
        "echo >&2",
        'echo "::stbench exit $s" >&2',
        "kill -KILL 0",
    ]
)
_PID = re.compile(rb"(?:\A|\n)::stbench pid (\d{1,10})\n")
_EXIT = b"\n::stbench exit "


def command_line(argv: Sequence[str], directory: str, timeout_s: float) -> str:
    """What sshd is asked to run. After twice the time limit the board itself ends the command, even when
    nobody told it that the link is gone."""
    rounds = str(int(2 * timeout_s / WATCH_S) + SPARE_ROUNDS)
    words = ["sh", "-c", _AROUND, "sh", _AROUND, rounds, directory, *argv]
    return "exec " + " ".join(map(shlex.quote, words))


class SshRunning:
    """A command of :meth:`stbench.connectors.ssh.SshConnector.start`."""

    def __init__(
        self,
        link: Link,
        command: str,
        stdin: bytes,
        timeout_s: float,
        *,
        keep_stdin: bool = False,
        silence_s: float | None = None,
    ) -> None:
        self._link = link
        self._deadline = time.monotonic() + timeout_s
        self._silence_s = silence_s
        self._timed_out = self._killed = self._lost = False
        self._unread: list[bytes] = []
        self._stderr = b""
        self._pid = 0
        self._pid_known = threading.Event()
        self._code: int | None = None
        self._exited = threading.Event()
        self._sending = threading.Lock()
        self._fed = threading.Event()
        self._channel = link.channel()
        try:
            self._channel.settimeout(TICK_S)
            self._channel.exec_command(command)
        except (paramiko.SSHException, OSError, EOFError) as error:
            self._channel.close()
            if link.broke():
                raise link.lost() from error
            raise DeviceError(f"the board's sshd runs no commands: {error}") from error
        self._drainer = threading.Thread(target=self._drain, daemon=True)
        self._drainer.start()
        if stdin and (keep_stdin or len(stdin) > 1 << 15):
            threading.Thread(target=self._feed, args=(stdin, keep_stdin), daemon=True).start()
        else:
            self._feed(stdin, keep_stdin)

    def lines(self) -> Iterator[str]:
        """Lines of stdout as they come; a line that never ends is cut off with its command. May be called
        again after an interruption: what was half read is kept."""
        heard, exited_at = time.monotonic(), 0.0
        while True:
            now = time.monotonic()
            if now > self._deadline:
                self._timed_out = True
                self.kill()
                return
            try:
                chunk = self._channel.recv(1 << 18)
            except TimeoutError:
                if self._silence_s is not None and now - heard > self._silence_s:
                    self._lost = True
                    self._link.lose(f"nothing was heard for {now - heard:.0f} s")
                    return
                # Somebody who outlives the command may hold its stdout.
                exited_at = exited_at or (now if self._exited.is_set() else 0.0)
                if exited_at and now - exited_at > 4 * TICK_S:
                    break
                continue
            if not chunk:
                break
            heard = time.monotonic()
            *whole, rest = chunk.split(b"\n")
            for line in whole:
                yield (b"".join(self._unread) + line).decode("utf-8", "replace")
                self._unread = []
            if rest:
                self._unread.append(rest)
                if sum(map(len, self._unread)) > MAX_LINE_BYTES:
                    self.kill()
                    return
        if self._unread:
            unread, self._unread = b"".join(self._unread), []
            yield unread.decode("utf-8", "replace")

    def ending(self) -> Ending:
        """How the command ended; one that closed its output but does not end is killed at the deadline."""
        while self._code is None and self._drainer.is_alive():
            if time.monotonic() > self._deadline:
                self._timed_out = True
                self.kill()
                break
            self._drainer.join(0.05)
        self._drainer.join(4 * TICK_S)
        if self._code is None and not self._killed:
            self._link.broke()
        lost = self._lost or (self._code is None and not self._killed and not self._link.alive)
        self._channel.close()
        code = -1 if lost else -9 if self._code is None else self._code
        return Ending(code, self._timed_out, self._stderr.decode("utf-8", "replace"), lost)

    def send(self, data: bytes) -> None:
        """More of its stdin, where it was kept open; behind what it was started with. A command that is gone
        is ignored."""
        self._fed.wait()
        self._write(data)

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        with self._sending:
            while view and not self._exited.is_set() and self._drainer.is_alive():
                try:
                    view = view[self._channel.send(view) :]  # type: ignore[arg-type]
                except TimeoutError:
                    if time.monotonic() > self._deadline:
                        return
                except (paramiko.SSHException, OSError, EOFError):
                    return

    def close_stdin(self) -> None:
        """No more of it."""
        with contextlib.suppress(paramiko.SSHException, OSError, EOFError):
            self._channel.shutdown_write()

    @property
    def over(self) -> bool:
        """Whether it has ended, or the link has."""
        return self._exited.is_set() or not self._drainer.is_alive()

    def cancel(self) -> None:
        """SIGTERM to the group now, and an end in five seconds whatever it does."""
        self._deadline = min(self._deadline, time.monotonic() + CANCEL_GRACE_S)
        self._signal("TERM")

    def kill(self) -> None:
        """SIGKILL to the group. Where the board cannot be told any more, it notices by itself."""
        if self.over:
            return
        if self._signal("KILL"):
            self._killed = True
            # Not for long: what nobody reads any more may keep the end of its stderr from coming.
            self._drainer.join(1.0)
        self._channel.close()

    # ---- threads ----------------------------------------------------------------------------------------

    def _feed(self, stdin: bytes, keep_stdin: bool) -> None:
        try:
            self._write(stdin)
        finally:
            self._fed.set()
        if not keep_stdin:
            self.close_stdin()

    def _drain(self) -> None:
        while True:
            try:
                chunk = self._channel.recv_stderr(1 << 16)
            except TimeoutError:
                if self._exited.is_set():
                    return
                continue
            if not chunk:
                return
            self._stderr += chunk
            if not self._pid and (match := _PID.search(self._stderr)) is not None:
                self._pid = int(match[1])
                self._pid_known.set()
                self._stderr = self._stderr[: match.start()] + self._stderr[match.end() :]
            self._take_exit()
            self._stderr = self._stderr[-STDERR_TAIL_BYTES:]

    def _take_exit(self) -> None:
        head, found, tail = self._stderr.rpartition(_EXIT)
        number, newline, rest = tail.partition(b"\n")
        if found and newline and number.isdigit():
            code = int(number) & 255
            self._code = 128 - code if 128 < code <= 192 else code
            self._stderr = head + rest
            self._exited.set()

    def _signal(self, name: str) -> bool:
        """Whether the board was told."""
        if self.over or not self._pid_known.wait(5.0) or not self._link.alive:
            return False
        try:
            self._link.call(f"exec sh -c 'kill -{name} -{self._pid}'", 5.0)
        except (LinkLost, DeviceError):
            return False
        return True
