"""How large a cache of units is, in bytes: a number, a share of all units, or "auto", the largest that fits.

What "auto" may take is the smaller of two rooms. Under a memory limit: the limit, less what is charged to it
of the process once the model is loaded (interpreter and the weights that do not stay on storage). On the
machine: what is still available. Of either, KV cache and scratch go off, which the session will allocate, and
a reserve for what nobody allocates by name.
"""

import math
from typing import NamedTuple, Optional

from .loading import available_bytes, group_anonymous, group_limit
from .sbr import NativeError, _abi
from .tree import Tree
from .verify import MAX_POSITIONS

AUTO = "auto"

# Python while it compares logits (5 MiB of row numbers where the lm_head is sparse), thread stacks, buffers
# of the I/O, hot pages of the shared libraries. SmallThinker 4B in 1 GiB ended its last token with 9 MiB of
# anonymous memory beyond what is counted by name, all of them kept logits.
RESERVE_BYTES = 16 << 20
# Of the limit: page tables take 1/512, counters that the kernel adds up late and page cache that reads go
# through the rest. A group at 99 % of its limit reclaims at every read.
RESERVE_SHARE = 64
# On top of a limit that is named: no two runs of a job have the same bytes in the process (0.1 MiB apart
# here), and the kernel counts some of them late.
_SPARE_BYTES = 1 << 20

_MIB = float(1 << 20)


class Needs(NamedTuple):
    """What the session will allocate beside the cache, and what its cache must and can have, in bytes."""

    kv_bytes: int
    scratch_bytes: int
    minimum: int
    unit_bytes: int
    total_bytes: int


class Room(NamedTuple):
    """Bytes: the limit that holds (None: none is known), what the process has in anonymous memory, and what
    the machine still has (None: not known)."""

    limit: Optional[int]
    resident: int
    available: Optional[int]


class Chosen(NamedTuple):
    """``why`` is for people; "" for a size that was asked for."""

    bytes: int
    why: str


def room(requested_limit: int, tree: Optional[Tree] = None) -> Room:
    """What there is now, with the model loaded. A limit that was asked for counts even where nobody enforces
    it (0: none was)."""
    tree = tree if tree is not None else Tree()
    limits = [found for found in (group_limit(tree), requested_limit or None) if found is not None]
    fields = tree.fields("proc/self/status")
    resident = sum(tree.kibibytes(fields, key) or 0 for key in ("RssAnon", "RssShmem"))
    charged = group_anonymous(tree)
    if charged is not None:
        resident = min(resident, charged)
    return Room(min(limits, default=None), resident, available_bytes(tree))


def reserve_bytes(limit: Optional[int], n_vocab: int) -> int:
    """What is left free beside everything that is allocated by name: kept logits twice (the check copies
    them), and the two numbers above."""
    return RESERVE_BYTES + (limit or 0) // RESERVE_SHARE + 2 * MAX_POSITIONS * n_vocab * 4


def choose(asked: str, needs: Needs, there: Room, n_vocab: int) -> Chosen:
    """The size for the setting ``asked``. Raises NativeError with the smallest limit or cache that works."""
    if asked == AUTO:
        return _largest(needs, there, n_vocab)
    size = min(_wanted(asked, needs), needs.total_bytes)
    if size < needs.minimum:
        raise NativeError(
            _abi.ERR_ARGUMENT,
            "a cache of %s is too small: %s is the smallest that works here (--cache %d)"
            % (_mib(size), _mib(needs.minimum), needs.minimum),
        )
    certain = there.resident + needs.kv_bytes + needs.scratch_bytes
    if there.limit is not None and certain + size > there.limit:
        raise NativeError(
            _abi.ERR_MEMORY,
            "a cache of %s does not fit the limit of %s: %s; %s"
            % (
                _mib(size),
                _mib(there.limit),
                _account(needs, there),
                _way_out(certain + size, needs, there, n_vocab),
            ),
        )
    return Chosen(size, "")


def _wanted(asked: str, needs: Needs) -> int:
    try:
        if asked.endswith("%"):
            share = float(asked[:-1]) / 100
            if not 0 < share <= 1:
                raise ValueError(asked)
            units = math.ceil(share * needs.total_bytes / needs.unit_bytes)
            return units * needs.unit_bytes
        size = int(asked)
        if size < 0:
            raise ValueError(asked)
        return size
    except ValueError:
        raise NativeError(
            _abi.ERR_ARGUMENT, 'cache "%s": expected auto, bytes, or a share such as 25%%' % asked
        ) from None


def _largest(needs: Needs, there: Room, n_vocab: int) -> Chosen:
    reserve = reserve_bytes(there.limit, n_vocab)
    beside = needs.kv_bytes + needs.scratch_bytes + reserve
    rooms = []
    if there.limit is not None:
        rooms.append(there.limit - there.resident - beside)
    if there.available is not None:
        rooms.append(there.available - beside)
    free = min(rooms, default=needs.total_bytes)
    size = min(free // needs.unit_bytes * needs.unit_bytes, needs.total_bytes)
    if size < needs.minimum:
        # Where the machine is short the limit is not what to raise.
        bound = there.limit is not None and free == there.limit - there.resident - beside
        held = there.resident + needs.kv_bytes + needs.scratch_bytes + needs.minimum
        what = "the limit of %s" % _mib(there.limit or 0) if bound else "the memory that is available"
        raise NativeError(
            _abi.ERR_MEMORY,
            "%s leaves no room for a cache, which needs %s at least: %s, and %s in reserve; %s"
            % (
                what,
                _mib(needs.minimum),
                _account(needs, there),
                _mib(reserve),
                _way_out(held, needs, there, n_vocab) if bound else "end other programs",
            ),
        )
    if size == needs.total_bytes:
        return Chosen(size, "auto: all units fit (%s)" % _mib(size))
    whole = "the limit of %s" % _mib(there.limit) if there.limit is not None else "what is available"
    return Chosen(
        size,
        "auto: %s of %s in %s, beside %s and %s in reserve"
        % (_mib(size), _mib(needs.total_bytes), whole, _account(needs, there), _mib(reserve)),
    )


def _account(needs: Needs, there: Room) -> str:
    return "%s in the process with its resident weights, %s of KV cache, %s of scratch" % (
        _mib(there.resident),
        _mib(needs.kv_bytes),
        _mib(needs.scratch_bytes),
    )


def _way_out(held: int, needs: Needs, there: Room, n_vocab: int) -> str:
    """The smallest limit for ``held`` bytes, and the largest cache under this one where there is any."""
    # A larger limit has a larger reserve: its own counts.
    least = (held + reserve_bytes(None, n_vocab)) * RESERVE_SHARE / (RESERVE_SHARE - 1.0) + _SPARE_BYTES
    text = "the smallest limit for it is %d MiB" % math.ceil(least / _MIB)
    limit = there.limit or 0
    free = limit - there.resident - needs.kv_bytes - needs.scratch_bytes - reserve_bytes(limit, n_vocab)
    if free >= needs.minimum:
        text += ", the largest cache under this one %d MiB" % int(free / _MIB)
    return text


def _mib(size: int) -> str:
    return "%.1f MiB" % (size / _MIB)
