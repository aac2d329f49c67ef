"""A job's memory limit, from before its process is forked until its proof is written.

The order matters. A way to hold the limit is chosen and made; the weights leave the page cache; the process
is forked, put under the limit and only then loads anything, so that all it touches is charged to it. While it
runs it is looked at, and when it has ended the limit is read back and what happened is judged.

Ways, by their names in devices.yaml: ``cgroup-v2``, ``cgroup-v1``, ``boot``, ``ballast``, ``none``; ``auto``
takes the first of the first three that works. It locks no memory unasked: on a desktop that presses all that
runs there into the limit. docs/memory-limits.md says what each of them shows.
"""

import dataclasses
import os
import time
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

from . import memgroup, memscope
from .ballast import Ballast, Boot
from .childloop import phases_told
from .memhold import Hold, Parts, Refused, why
from .pagecache import Weights
from .tree import Tree, processes
from .wire import JobSpec, LimitProof, RunRecord

NONE, AUTO = "none", "auto"
# In the order of what they show.
_AUTO_WAYS = (memgroup.V2, memgroup.V1, Boot.method)
WAYS: Dict[str, Callable[[Tree, int], Hold]] = {
    memgroup.V2: lambda tree, limit: memgroup.make(tree, memgroup.V2, limit),
    memgroup.V1: lambda tree, limit: memgroup.make(tree, memgroup.V1, limit),
    Boot.method: Boot,
    Ballast.method: Ballast,
}

# Between two looks. Where the kernel keeps no peak it is the largest of what they saw.
_SAMPLED_S, _LOOK_S = 0.05, 0.5

# What of the process's own is read when its timed phases are over.
RESULTS = "results"
PART = "limit reading"
_TIMED = ("prefill", "decode", "llama-bench", "external program")

# Counters of pages lag behind by so many per CPU and kind before they are added up.
_LAG_PAGES = 64

_PI = "on a Raspberry Pi add cgroup_enable=memory to the line in /boot/firmware/cmdline.txt and reboot"


def is_wanted(job: JobSpec) -> bool:
    """Whether the job asks for a limit. A reference is about what is computed, and runs without."""
    return job.settings.memory_limit_bytes > 0 and job.purpose != "reference"


class Place(NamedTuple):
    """Where this agent runs: ``in_scope``, in a scope of its own, which it may divide; ``scope_refused``: why
    it does not, though that was tried."""

    in_scope: bool = False
    scope_refused: str = ""


NOWHERE_SPECIAL = Place()


class Choice(NamedTuple):
    """A limit in force, or why there is none."""

    hold: Optional[Hold]
    reasons: List[str]


def choose(method: str, limit_bytes: int, tree: Tree, in_scope: bool = False) -> Choice:
    """The first way that works of those that ``method`` allows. ``in_scope``: this agent was started in a
    scope of its own, which it divides."""
    if method == NONE:
        return Choice(None, ["devices.yaml says memory_limit: none for this device"])
    if method not in WAYS and method != AUTO:
        return Choice(
            None, ['"%s" is no way to hold a limit: expected auto, %s or none' % (method, ", ".join(WAYS))]
        )
    if in_scope:
        try:
            return Choice(memgroup.make(tree, memgroup.V2, limit_bytes, own=True), [])
        except (Refused, OSError) as error:
            return Choice(None, ["%s, in a scope: %s" % (memgroup.V2, _said(error))])
    reasons: List[str] = []
    for name, take in WAYS.items():
        if method != name and not (method == AUTO and name in _AUTO_WAYS):
            continue
        try:
            return Choice(take(tree, limit_bytes), reasons)
        except (Refused, OSError) as error:
            reasons.append("%s: %s" % (name, _said(error)))
        if name == memgroup.V2 and os.geteuid() != 0 and _has_groups(tree):
            reasons.append("a scope of its own: " + (memscope.refusal(tree) or "systemd-run gave none"))
    return Choice(None, reasons)


def _has_groups(tree: Tree) -> bool:
    """Groups of version 2 can hold a limit here, if not everybody's."""
    try:
        memgroup.hierarchy(tree, memgroup.V2)
    except Refused:
        return False
    return True


def _said(error: Exception) -> str:
    return why(error) if isinstance(error, OSError) else str(error)


def scope_helps(job: JobSpec, tree: Optional[Tree] = None) -> bool:
    """Whether the job is better run in a scope of systemd's user manager: where groups of version 2 are
    allowed, we cannot make one ourselves, and there is such a manager."""
    tree = tree if tree is not None else Tree()
    if not is_wanted(job) or job.limit_method not in (AUTO, memgroup.V2) or memscope.refusal(tree):
        return False
    try:
        memgroup.make(tree, memgroup.V2, job.settings.memory_limit_bytes).remove()
        return False
    except (Refused, OSError):
        return True


def _mib(size: int) -> str:
    return "%.1f MiB" % (size / (1 << 20))


class Reading(NamedTuple):
    """What was seen of the process and its group at one moment; None: not known."""

    parts: Optional[Parts] = None
    read_bytes: Optional[int] = None
    refaults: Optional[int] = None


class Limit:
    """One job's limit. Calls come in this order: :meth:`admit` and the rest while the process runs,
    :meth:`proof`, :meth:`close`."""

    def __init__(self, job: JobSpec, place: Place = NOWHERE_SPECIAL, tree: Optional[Tree] = None) -> None:
        self._tree = tree = tree if tree is not None else Tree()
        self.requested = job.settings.memory_limit_bytes
        self._method = job.limit_method
        self._is_program = job.program is not None
        self.hold, self._reasons = choose(job.limit_method, self.requested, tree, place.in_scope)
        if place.scope_refused:
            self._reasons.append(place.scope_refused)
        self._weights = Weights([job.model.path, job.settings.bundle])
        try:
            self._cached_before = self._weights.drop()
        except BaseException:
            self.close()
            raise
        self._holders: List[str] = []
        if (self._cached_before or 0) > self._weights.tolerance:
            self._holders = self._weights.holders()
        self._pid = 0
        self._phase = ""
        self._partial = b""
        self._last = Reading()
        self._peak_seen: Optional[int] = None
        self._strays: List[str] = []
        self._next = 0.0

    # ---- while the process runs --------------------------------------------------------------------------

    def admit(self, pid: int) -> None:
        """Puts the process, which has loaded nothing yet, under the limit. Where that fails there is none."""
        self._pid = pid
        if self.hold is None:
            return
        try:
            self.hold.admit(pid)
        except OSError as error:
            self._reasons.append("%s: the process could not enter: %s" % (self.hold.method, why(error)))
            self.close()

    def pause(self, limit: float) -> float:
        """Seconds until the next look, at most ``limit``."""
        return min(limit, max(self._next - time.monotonic(), 0.0)) if self.hold is not None else limit

    def told(self, data: bytes) -> None:
        """What the process reported just now; its phases count."""
        phases, self._partial = phases_told(self._partial + data)
        for self._phase in phases:
            self._next = 0.0

    def look(self) -> None:
        """A look, if it is due."""
        hold, now = self.hold, time.monotonic()
        if hold is None or now < self._next:
            return
        sampled = hold.peak() is None
        self._next = now + (_SAMPLED_S if sampled else _LOOK_S)
        usage = hold.usage() if sampled else None
        if usage is not None:
            self._peak_seen = max(usage, self._peak_seen or 0)
        for pid in processes(self._tree, self._pid):
            if hold.holds(pid) is False and len(self._strays) < 3:
                self._strays.append(
                    "process %d was not in its group during %s" % (pid, self._phase or "start")
                )
        if self._phase.startswith(_TIMED):
            seen = self._reading(self._pid)
            # A program that just ended has given its memory back.
            if not (
                self._is_program
                and self._last.parts
                and seen.parts
                and seen.parts.anon < self._last.parts.anon // 2
            ):
                self._last = seen

    def reading(self) -> Dict[str, Any]:
        """In the process itself, when its timed phases are over: what only it can say exactly."""
        if self.hold is None:
            return {}
        seen, pid = self._reading(os.getpid()), os.getpid()
        return {
            "anon": seen.parts.anon if seen.parts else None,
            "file": seen.parts.file if seen.parts else None,
            "read": seen.read_bytes,
            "refaults": seen.refaults,
            "inside": self.hold.holds(pid),
        }

    def _reading(self, pid: int) -> Reading:
        hold = self.hold
        assert hold is not None
        io = self._tree.fields("proc/%d/io" % pid).get("read_bytes", "")
        parts = hold.parts()
        if parts is None:
            status = self._tree.fields("proc/%d/status" % pid)
            anon, file = (self._tree.kibibytes(status, key) for key in ("RssAnon", "RssFile"))
            parts = Parts(anon, file) if anon is not None and file is not None else None
        return Reading(parts, int(io) if io.isdigit() else None, hold.refaults())

    # ---- afterwards --------------------------------------------------------------------------------------

    def oom_kills(self) -> Optional[int]:
        """Processes under the limit that the kernel killed; None when it does not count them apart."""
        return self.hold.oom_kills() if self.hold is not None else None

    def proved(self, record: RunRecord, messages: Sequence[Dict[str, Any]]) -> RunRecord:
        """The record with its proof; a run that was too large for its limit says so."""
        told = [message["value"] for message in messages if message.get("part") == PART]
        proof = self.proof(told[-1] if told else None)
        detail = record.detail
        if record.status == "out-of-memory" and proof.method != NONE:
            detail += "; " + self._too_small(record, messages)
        return dataclasses.replace(record, limit=proof, detail=detail)

    def _too_small(self, record: RunRecord, messages: Sequence[Dict[str, Any]]) -> str:
        """What an out-of-memory means under this limit."""
        said = "it ran under a limit of %s (%s)" % (
            _mib(self.requested),
            self.hold.method if self.hold else NONE,
        )
        phases = [message["phase"] for message in messages if "phase" in message]
        account = record.account
        if account is not None:
            least = account.weights + account.kv_allocated + account.scratch + account.cache
            return said + "; weights, KV cache, buffers and cache take %s beside the interpreter" % _mib(
                least
            )
        if phases in ([], ["start"]):
            return said + ", which is less than the interpreter and the library need (some 16 MiB)"
        return said

    def proof(self, told: Optional[Dict[str, Any]] = None) -> LimitProof:
        """What shows whether it held. ``told``: what the process itself read."""
        hold = self.hold
        before = self._cached_before
        start = "" if before is None else "cold" if before <= self._weights.tolerance else "warm"
        if hold is None:
            return LimitProof(
                NONE,
                self.requested,
                "not-enforced",
                detail="; ".join(self._reasons) + self._mend(),
                cached_before_bytes=before,
                start=start,
            )
        last, inside = self._merged(told)
        peak, file_now = hold.peak(), hold.parts()
        proof = LimitProof(
            hold.method,
            self.requested,
            "held",
            limit_bytes=hold.limit(),
            group=hold.group,
            peak_bytes=peak if peak is not None else self._peak_seen,
            peak_sampled=peak is None and self._peak_seen is not None,
            anon_bytes=last.parts.anon if last.parts else None,
            file_bytes=last.parts.file if last.parts else None,
            read_bytes=last.read_bytes,
            refaults=hold.refaults() if hold.refaults() is not None else last.refaults,
            oom_kills=hold.oom_kills(),
            swap_off=hold.swap_off(),
            cached_before_bytes=before,
            cached_after_bytes=self._weights.cached(),
            start=start,
        )
        verdict, detail = self._judged(hold, proof, file_now, inside)
        return dataclasses.replace(proof, verdict=verdict, detail=detail)

    def _merged(self, told: Optional[Dict[str, Any]]) -> Tuple[Reading, Optional[bool]]:
        """What the process said of its end, and what was seen of it last where that says nothing."""
        last = self._last
        if not told:
            return last, None
        parts = last.parts
        if not self._is_program and told["anon"] is not None:
            parts = Parts(told["anon"], told["file"] or 0)
        read = told["read"] if told["read"] is not None else last.read_bytes
        return Reading(parts, read, told["refaults"]), told["inside"]

    def _judged(
        self, hold: Hold, proof: LimitProof, file_now: Optional[Parts], inside: Optional[bool]
    ) -> Tuple[str, str]:
        """(verdict, why)."""
        limit, peak = proof.limit_bytes, proof.peak_bytes
        if limit is None or not hold.least <= limit <= hold.most:
            return "exceeded", "the limit reads back as %s bytes" % limit
        if hold.broken():
            return "exceeded", hold.broken()
        if self._strays or inside is False:
            return "exceeded", (self._strays or ["the process was not in its group at its end"])[0]
        if peak is not None and peak > limit:
            return "exceeded", "%d bytes were in use at the peak" % peak
        if not proof.swap_off:
            return "void", "memory could be swapped out: sudo swapoff -a"
        return self._judged_cache(hold, proof, file_now)

    def _judged_cache(self, hold: Hold, proof: LimitProof, file_now: Optional[Parts]) -> Tuple[str, str]:
        """Whether weights lay in memory that was not charged to the run."""
        if not hold.charges_file_pages():
            return "held", ""
        before, after = proof.cached_before_bytes, proof.cached_after_bytes
        if before is None or after is None:
            return "void", (
                "whether weights lay in page cache outside of the group cannot be known: their file is "
                "another user's; give it to the user who measures (chown)"
            )
        if before > self._weights.tolerance:
            held_by = ", held by process " + " and ".join(self._holders) if self._holders else ""
            return "void", "%s of the weights stayed in page cache outside of the group%s" % (
                _mib(before),
                held_by,
            )
        lag = _LAG_PAGES * (os.cpu_count() or 1) * os.sysconf("SC_PAGE_SIZE")
        charged = file_now.file if file_now is not None else 0
        if after > charged + self._weights.tolerance + lag:
            who = self._weights.holders()
            return (
                "void",
                "after the run %s of the weights lay in page cache, at most %s of them in its group: %s"
                % (
                    _mib(after),
                    _mib(min(charged, after)),
                    "process %s maps them" % " and ".join(who) if who else "somebody else reads them, too",
                ),
            )
        return "held", ""

    def _mend(self) -> str:
        """What would make a limit possible here."""
        tree = self._tree
        rows = [line.split() for line in (tree.text("proc/cgroups") or "").splitlines()]
        off = any(len(row) == 4 and row[0] == "memory" and row[3] == "0" for row in rows)
        if "Raspberry Pi" in (tree.text("proc/device-tree/model") or ""):
            return "; " + _PI
        if off or "cgroup_disable=memory" in (tree.text("proc/cmdline") or ""):
            return "; add cgroup_enable=memory to the kernel's command line and reboot"
        if self._method in (AUTO, memgroup.V2) and os.geteuid() != 0 and _has_groups(tree):
            return "; log in as root, or as a user whose logins systemd manages (apt install libpam-systemd)"
        return ""

    def close(self) -> None:
        """Gives back what was taken: the group, the locked memory."""
        if self.hold is not None:
            self.hold.remove()
            self.hold = None
