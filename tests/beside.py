"""Slow tests beside the others, so that compilers and emulators use the CPUs while other tests wait.

Two marks decide when a test runs:

- ``quiet``: what others do on the machine could change its outcome (benchmarks, judgements of disturbance).
  Such tests come first, alone.
- ``beside(GROUP, seconds=S, nice=N)``: it takes long and does not mind company. From the end of the quiet
  tests on, ``--beside`` processes (pytest, too) take such tests, group by group, the longest first, at that
  niceness. A group shares fixtures and stays in one process; without a name a test is its own. Groups of
  niceness 0 have deadlines of their own (emulated boards): the first process begins with them, and no other
  takes them.

All others run in the session itself, one after another, as ever. At its end it runs the groups that nobody
has claimed and reports the others' results as its own, so that a failure reads as if there had been one
process. Nothing is started for ``--collect-only``, for tests that were not selected, with ``--pdb`` or
``-s``. The processes end with the session, however it ends: they hold the other end of a pipe.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

# In the environment of such a process: the JSON file that says what it may claim.
_HELPER = "STBENCH_TESTS_BESIDE"
# Compilers and emulators leave the CPUs to whoever wants them.
NICE = 15
# Beside others a test may take as many times as long before pytest-timeout ends it.
PATIENCE = 3
# Between an interrupt and the kill, seconds: fixtures take their boards down.
GRACE_S = 15.0


@dataclass
class Group:
    """Tests that run in one process, in this order. ``number`` names its files."""

    number: int
    name: str
    nice: int
    seconds: float
    items: list[pytest.Item] = field(default_factory=list)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--beside", type=int, default=2, metavar="N", help="processes for slow tests beside the others (2)"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "quiet: runs before anything runs beside the tests")
    config.addinivalue_line("markers", "beside(group, seconds, nice): may run beside the others")
    if path := os.environ.pop(_HELPER, None):
        config.pluginmanager.register(_Helper(config, Path(path)), "beside-helper")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Quiet tests first; groups last, those that helpers take first at the very end."""
    place = {id(item): -at for at, group in enumerate(groups_of(items), 1) for item in group.items}

    def key(item: pytest.Item) -> tuple[int, int]:
        if id(item) in place:
            return 2, place[id(item)]
        return (0 if item.get_closest_marker("quiet") else 1), 0

    items.sort(key=key)


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> bool | None:
    options = session.config.option
    groups = groups_of(session.items)
    alone = len(groups) < 2 and len(session.items) == sum(len(group.items) for group in groups)
    if not groups or alone or options.beside < 1 or session.testsfailed:
        return None
    if options.collectonly or options.usepdb or options.trace or options.capture == "no":
        return None
    _run_all(session, groups)
    return True


def groups_of(items: list[pytest.Item]) -> list[Group]:
    """The groups of the marked tests, in the order in which they should be claimed."""
    found: dict[str, Group] = {}
    for item in items:
        if mark := item.get_closest_marker("beside"):
            name = str(mark.args[0]) if mark.args else item.nodeid
            new = Group(0, name, mark.kwargs.get("nice", NICE), 0.0)
            group = found.setdefault(name, new)
            group.seconds = max(group.seconds, mark.kwargs.get("seconds", 0.0))
            group.items.append(item)
    ordered = sorted(found.values(), key=lambda group: (group.nice, -group.seconds, group.name))
    for number, group in enumerate(ordered):
        group.number = number
    return ordered


def _run_all(session: pytest.Session, groups: list[Group]) -> None:
    """The session's own tests, then what is left of the groups."""
    theirs = {id(item) for group in groups for item in group.items}
    own = [item for item in session.items if id(item) not in theirs]
    quiet = [item for item in own if item.get_closest_marker("quiet")]
    helpers = _Helpers(session.config, groups)
    try:
        loud = own[len(quiet) :]
        _run(session, quiet, loud[0] if loud else None)
        helpers.start()
        _run(session, loud)
        for group in reversed(groups):
            _run(session, group.items if helpers.claim(group) else _replay(session, helpers, group))
    finally:
        helpers.stop()


def _run(session: pytest.Session, items: list[pytest.Item], then: pytest.Item | None = None) -> None:
    """As pytest's own loop; with the last one go the fixtures that ``then``, if any, does not share."""
    for item, following in zip(items, [*items[1:], then], strict=False):
        session.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        _stop_if_wanted(session)


def _stop_if_wanted(session: pytest.Session) -> None:
    if session.shouldfail:
        raise session.Failed(session.shouldfail)
    if session.shouldstop:
        raise session.Interrupted(session.shouldstop)


def _replay(session: pytest.Session, helpers: _Helpers, group: Group) -> list[pytest.Item]:
    """Files the reports of a group that somebody else claimed, as they come. Returns the tests that are left
    to run because that process ended early; the one that it ended in has failed."""
    hook = session.config.hook
    for at, item in enumerate(group.items):
        hook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        complete = False
        for report in helpers.reports(group, item):
            hook.pytest_runtest_logreport(report=report)
            complete = complete or report.when == "teardown"
        if not complete:
            hook.pytest_runtest_logreport(report=_crash(item, helpers.last_words(group)))
        hook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        _stop_if_wanted(session)
        if not complete:
            return group.items[at + 1 :]
    return []


def _crash(item: pytest.Item, words: str) -> pytest.TestReport:
    keywords = {name: 1 for name in item.keywords}
    return pytest.TestReport(item.nodeid, item.location, keywords, "failed", words, "call")


def _claim(folder: Path, number: int, who: str) -> bool:
    """Whether the group is ours now; each can be claimed once."""
    whole = folder / f"{number}.claim-of-{who}"
    whole.write_text(who)
    try:
        os.link(whole, folder / f"{number}.claim")
    except FileExistsError:
        return False
    return True


class _Helpers:
    """The processes, seen from the session."""

    def __init__(self, config: pytest.Config, groups: list[Group]) -> None:
        self._config = config
        self._groups = groups
        self._folder = Path(tempfile.mkdtemp(prefix="stbench-beside-"))
        self._processes: list[subprocess.Popen[bytes]] = []
        self._pipes: list[int] = []

    def start(self) -> None:
        """Starts as many as were asked for, of those that would have something to do."""
        for number in range(self._config.option.beside):
            # Emulated boards have deadlines: not two of them at a time, and not at low priority.
            chosen = [group for group in self._groups if number == 0 or group.nice > 0]
            if len(chosen) > number:
                self._start(number, chosen)

    def _start(self, number: int, groups: list[Group]) -> None:
        reading, writing = os.pipe()
        names = [(group.number, group.nice, [item.nodeid for item in group.items]) for group in groups]
        orders = self._folder / f"helper-{number}.json"
        orders.write_text(json.dumps({"pipe": reading, "who": str(number), "groups": names}))
        config = self._config
        files = dict.fromkeys(str(item.path) for group in groups for item in group.items)
        command = [sys.executable, __file__, "--rootdir", str(config.rootpath)]
        if config.inipath is not None:
            command += ["-c", str(config.inipath)]
        if config.option.basetemp is not None:
            command += ["--basetemp", f"{config.option.basetemp}-beside-{number}"]
        if library := getattr(config.option, "library", None):
            command += ["--library", str(library)]
        # A lease of its own: sweeps of the local device in two processes would wait for each other.
        environment = {**os.environ, _HELPER: str(orders), "STBENCH_LEASE": f"{self._folder}/lease-{number}"}
        with (self._folder / f"helper-{number}.log").open("wb") as log:
            process = subprocess.Popen(
                [*command, *files],
                cwd=config.invocation_params.dir,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=[reading],
            )
        os.close(reading)
        self._processes.append(process)
        self._pipes.append(writing)

    def claim(self, group: Group) -> bool:
        """Whether the session has to run it itself."""
        return _claim(self._folder, group.number, "session")

    def reports(self, group: Group, item: pytest.Item) -> Iterator[pytest.TestReport]:
        """What is reported of a test, until it is complete or nothing more can come."""
        path, seen = self._folder / f"{group.number}.jsonl", 0
        while True:
            ended = self._owner(group).poll() is not None  # before what is there by then is read
            text = path.read_text() if path.exists() else ""
            lines = text[: text.rfind("\n") + 1].splitlines()
            for data in map(json.loads, lines[seen:]):
                report = self._config.hook.pytest_report_from_serializable(config=self._config, data=data)
                if report.nodeid == item.nodeid:
                    yield report
                    if report.when == "teardown":
                        return
            seen = len(lines)
            if ended:
                return
            time.sleep(0.1)

    def last_words(self, group: Group) -> str:
        """How the process that claimed a group ended."""
        number = (self._folder / f"{group.number}.claim").read_text()
        log = (self._folder / f"helper-{number}.log").read_text(errors="replace")
        code = self._owner(group).returncode
        return f"the process beside the session that ran this test ended with code {code}:\n{log[-6000:]}"

    def _owner(self, group: Group) -> subprocess.Popen[bytes]:
        return self._processes[int((self._folder / f"{group.number}.claim").read_text())]

    def stop(self) -> None:
        """Interrupts those that run, as Ctrl-C would. Says which ended early, ends what is left."""
        reporter = self._config.pluginmanager.get_plugin("terminalreporter")
        for number, process in enumerate(self._processes):
            if process.poll() not in (None, 0, 1) and reporter is not None:
                log = (self._folder / f"helper-{number}.log").read_text(errors="replace")
                reporter.write_line(
                    f"\nprocess {number} beside the tests ended early (exit code {process.returncode}); the "
                    f"others ran what it left. The end of its output:\n{log[-6000:]}"
                )
        for pipe in self._pipes:
            os.close(pipe)
        deadline = time.monotonic() + GRACE_S
        for process in self._processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(deadline - time.monotonic(), 0.1))
            # Its group outlives it while a compiler of its own is left.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.kill()  # where it has no group of its own yet
            process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)


class _Helper:
    """The plugin that makes a pytest such a process: it claims groups, runs them, writes their reports."""

    def __init__(self, config: pytest.Config, orders: Path) -> None:
        found = json.loads(orders.read_text())
        self._config = config
        self._folder = orders.parent
        self._who: str = found["who"]
        self._groups: list[tuple[int, int, list[str]]] = found["groups"]
        self._current = -1
        self._orphaned = False
        # Not a session of its own: to the scheduler that would be another desk, whose niceness counts apart.
        os.setpgid(0, 0)
        threading.Thread(target=self._watch, args=(found["pipe"],), daemon=True).start()

    def _watch(self, pipe: int) -> None:
        """Interrupts this process group when the session's end of the pipe closes."""
        os.read(pipe, 1)
        self._orphaned = True
        os.killpg(0, signal.SIGINT)
        time.sleep(GRACE_S)
        os.killpg(0, signal.SIGKILL)

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        wanted = {nodeid for _, _, nodeids in self._groups for nodeid in nodeids}
        items[:] = [item for item in items if item.nodeid in wanted]
        if self._config.pluginmanager.hasplugin("timeout"):
            limit = PATIENCE * float(self._config.getini("timeout") or 0)
            for item in items:
                if item.get_closest_marker("timeout") is None:
                    item.add_marker(pytest.mark.timeout(limit))

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool | None:
        if session.testsfailed:  # not what the session collected; pytest ends here
            return None
        items = {item.nodeid: item for item in session.items}
        for number, nice, nodeids in self._groups:
            if not _claim(self._folder, number, self._who):
                continue
            os.nice(max(nice - os.nice(0), 0))
            self._current = number
            _run(session, [items[nodeid] for nodeid in nodeids])
        return True

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        data = self._config.hook.pytest_report_to_serializable(config=self._config, report=report)
        with (self._folder / f"{self._current}.jsonl").open("a") as file:
            file.write(json.dumps(data, default=str) + "\n")

    @pytest.hookimpl(trylast=True)
    def pytest_unconfigure(self) -> None:
        """Nobody is left to end what the interrupt did not reach."""
        if self._orphaned:
            shutil.rmtree(self._folder, ignore_errors=True)
            os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    # From wherever the session was started; Python put this file's own directory there.
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    sys.exit(pytest.main(["-p", "tests.beside", *sys.argv[1:]]))
