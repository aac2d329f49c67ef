"""What every way to hold a process to a memory limit can do (:mod:`.memgroup`, :mod:`.ballast`)."""

import os
from typing import NamedTuple, Optional

from .tree import Tree


class Refused(Exception):
    """A limit cannot be held in this way; the message says why."""


class Parts(NamedTuple):
    """Memory without and with a file behind it, bytes."""

    anon: int
    file: int


class Hold:
    """One limit that is in force. None: not known."""

    method = ""
    # As /proc/PID/cgroup names it; "" where the whole machine is limited.
    group = ""
    # What the limit has to be read back as, at least and at most.
    least = most = 0

    def admit(self, pid: int) -> None:
        """Puts a process under the limit, with all that it will start. Raises OSError."""

    def holds(self, pid: int) -> Optional[bool]:
        """Whether a process is under it."""
        return True

    def limit(self) -> Optional[int]:
        """As the kernel says it now, the lowest of the groups around it. What is not known is not held."""
        return None

    def peak(self) -> Optional[int]:
        """The kernel's own record."""
        return None

    def usage(self) -> Optional[int]:
        """In use now."""
        return None

    def parts(self) -> Optional[Parts]:
        """What is in use now."""
        return None

    def refaults(self) -> Optional[int]:
        """File pages that came back."""
        return None

    def oom_kills(self) -> Optional[int]:
        """Of processes under the limit."""
        return None

    def swap_off(self) -> Optional[bool]:
        """Nothing under the limit can be swapped out."""
        return no_swap(Tree())

    def charges_file_pages(self) -> bool:
        """Page cache is charged to whoever touched it first, so that somebody else's is outside the limit."""
        return False

    def broken(self) -> str:
        """Why it does not hold any more; ""."""
        return ""

    def remove(self) -> None:
        """Ends it."""


def no_swap(tree: Tree) -> Optional[bool]:
    """The machine has no swap at all."""
    total = tree.kibibytes(tree.fields("proc/meminfo"), "SwapTotal")
    return None if total is None else total == 0


def write(tree: Tree, path: str, text: str) -> None:
    """One write to an existing file of /proc or /sys. Raises OSError that names it."""
    full = str(tree.root / path)
    try:
        descriptor = os.open(full, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(descriptor, text.encode())
        finally:
            os.close(descriptor)
    except OSError as error:
        raise OSError(error.errno, error.strerror, "/" + path) from error


def why(error: OSError) -> str:
    """What was refused, where, and how."""
    said = os.strerror(error.errno) if error.errno else str(error)
    return "%s: %s" % (error.filename, said) if error.filename else said
