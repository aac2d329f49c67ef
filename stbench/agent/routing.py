"""Which experts a run chose, token by token: a file of its own (docs/routing.md), read, written, validated.

A file is one line of JSON, then the zlib-compressed experts ``[n_tokens][n_layer][n_expert_used]``: one byte
each where n_expert is at most 256, else two (little endian), ascending within each set. What is read is not
trusted: every size is checked before anything of that size is allocated.
"""

import array
import hashlib
import json
import operator
import os
import random
import sys
import zlib
from dataclasses import dataclass
from typing import Any, BinaryIO, Dict, List, Sequence

FORMAT = "stbench-routing"
VERSION = 1
SUFFIX = ".routing"

MAX_HEADER_BYTES = 1 << 14
MAX_LAYERS = 4096
MAX_EXPERTS = 1 << 16
# Of all layers together, used or not: consumers keep something for each.
MAX_UNITS = 1 << 22
# Of all indices together: 500 000 tokens of the 4B model, 128 MiB in memory.
MAX_VALUES = 1 << 26
MAX_TEXT = 1000

_SHAPE_LIMITS = {
    "n_layer": MAX_LAYERS,
    "n_expert": MAX_EXPERTS,
    "n_expert_used": MAX_EXPERTS,
    "n_tokens": MAX_VALUES,
}
_TEXTS = ("model", "model_digest", "source")


class RoutingError(ValueError):
    """A routing that is not well-formed, or does not fit. The message is a full sentence."""


@dataclass(frozen=True)
class Routing:
    """``experts``: array("H") of ``[n_tokens][n_layer][n_expert_used]``, ascending within each set.
    ``model`` and ``model_digest`` name the model whose router chose, "" for none; ``source`` says where the
    routing came from. :func:`validate` checks one that was made by hand."""

    n_layer: int
    n_expert: int
    n_expert_used: int
    experts: "array.array[int]"
    model: str = ""
    model_digest: str = ""
    source: str = ""

    @property
    def n_tokens(self) -> int:
        """How many tokens it has."""
        return len(self.experts) // (self.n_layer * self.n_expert_used)

    def digest(self) -> str:
        """SHA-256 of shape and experts, whatever the model is called: the same choices, the same digest."""
        hasher = hashlib.sha256(
            b"%d %d %d %d\n" % (self.n_layer, self.n_expert, self.n_expert_used, self.n_tokens)
        )
        hasher.update(_little_endian(self.experts))
        return hasher.hexdigest()

    def head(self, n_tokens: int) -> "Routing":
        """Its first ``n_tokens`` tokens, or all."""
        values = n_tokens * self.n_layer * self.n_expert_used
        return self._with(self.n_layer, self.n_expert, self.n_expert_used, self.experts[:values])

    def _with(
        self, n_layer: int, n_expert: int, n_expert_used: int, experts: "array.array[int]"
    ) -> "Routing":
        return Routing(n_layer, n_expert, n_expert_used, experts, self.model, self.model_digest, self.source)

    def fit_to(self, n_layer: int, n_expert: int, n_expert_used: int, seed: int = 1) -> "Routing":
        """The routing for a model of another shape, for replaying; itself where the shape is the same.

        Layer l takes the choices of this routing's layer ``l * layers here // n_layer``. Where a layer is
        taken again, its experts are permuted and its tokens start elsewhere (both by ``seed``), so that two
        layers are alike in their statistics but are no copies. Experts: n_expert and n_expert_used may both
        be larger by one whole factor; each group of experts is then treated as a layer taken again. Raises
        :class:`RoutingError` for any other n_expert and n_expert_used: the share of experts that a token
        uses would not be the same, nor would what a cache hits.
        """
        if (n_layer, n_expert, n_expert_used) == (self.n_layer, self.n_expert, self.n_expert_used):
            return self
        groups = n_expert // self.n_expert
        if groups < 1 or (n_expert, n_expert_used) != (groups * self.n_expert, groups * self.n_expert_used):
            raise RoutingError(
                "a routing of %d of %d experts cannot be replayed on a model that uses %d of %d: both "
                "numbers must be the same, or larger by the same whole factor"
                % (self.n_expert_used, self.n_expert, n_expert_used, n_expert)
            )
        if not 0 < n_layer <= MAX_LAYERS:
            raise RoutingError("n_layer is %d, expected 1 to %d" % (n_layer, MAX_LAYERS))
        _check_units(n_layer, n_expert)
        n_tokens, used = self.n_tokens, self.n_expert_used
        if n_tokens * n_layer * n_expert_used > MAX_VALUES:
            raise RoutingError(
                "a routing of %d tokens is too long for %d layers of %d experts each: at most %d indices"
                % (n_tokens, n_layer, n_expert_used, MAX_VALUES)
            )
        rng = random.Random(seed)
        row = n_layer * n_expert_used
        out = array.array("H", bytes(2 * n_tokens * row))
        taken: Dict[int, int] = {}
        for layer in range(n_layer):
            source = layer * self.n_layer // n_layer
            for group in range(groups):
                again = taken.get(source, 0)
                taken[source] = again + 1
                names = list(range(self.n_expert))
                offset = 0
                if again:
                    # By sort key: random() gives the same numbers under every version of Python.
                    names.sort(key=lambda _: rng.random())
                    offset = int(rng.random() * n_tokens)
                names = [group * self.n_expert + name for name in names]
                for token in range(n_tokens):
                    start = ((token + offset) % n_tokens * self.n_layer + source) * used
                    chosen = sorted(names[e] for e in self.experts[start : start + used])
                    to = token * row + layer * n_expert_used + group * used
                    out[to : to + used] = array.array("H", chosen)
        return self._with(n_layer, n_expert, n_expert_used, out)


def validate(routing: Routing) -> None:
    """Raises :class:`RoutingError` naming the first thing that is wrong."""
    check_shape(routing.n_layer, routing.n_expert, routing.n_expert_used, routing.n_tokens)
    row = routing.n_layer * routing.n_expert_used
    experts, used = routing.experts, routing.n_expert_used
    if len(experts) % row:
        raise RoutingError("%d indices are no whole number of tokens of %d" % (len(experts), row))
    ascending = all(all(map(operator.lt, experts[k - 1 :: used], experts[k::used])) for k in range(1, used))
    if ascending and max(experts) < routing.n_expert:
        return
    for i, expert in enumerate(experts):
        token, layer = i // row, i % row // used
        if expert >= routing.n_expert:
            raise RoutingError(
                "token %d, layer %d: expert %d, but there are %d" % (token, layer, expert, routing.n_expert)
            )
        if i % used and experts[i - 1] >= expert:
            raise RoutingError(
                "token %d, layer %d: expert %d comes after %d; a set ascends and names nobody twice"
                % (token, layer, expert, experts[i - 1])
            )


def from_sets(
    sets: Sequence[Sequence[int]], n_layer: int, n_expert: int, n_expert_used: int, **texts: str
) -> Routing:
    """From one set of experts per token and layer, in any order. Raises :class:`RoutingError`."""
    values: List[int] = []
    for i, chosen in enumerate(sets):
        if len(chosen) != n_expert_used:
            raise RoutingError(
                "token %d, layer %d: %d experts, expected %d"
                % (i // n_layer, i % n_layer, len(chosen), n_expert_used)
            )
        values.extend(sorted(chosen))
    if values and not 0 <= min(values) <= max(values) < MAX_EXPERTS:
        raise RoutingError("experts are numbered from 0 to %d" % (MAX_EXPERTS - 1))
    routing = Routing(n_layer, n_expert, n_expert_used, array.array("H", values), **texts)
    validate(routing)
    return routing


def write(path: str, routing: Routing) -> str:
    """Writes a file, whole or not at all; returns its SHA-256. Raises :class:`RoutingError`, OSError."""
    validate(routing)
    header: Dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "n_layer": routing.n_layer,
        "n_expert": routing.n_expert,
        "n_expert_used": routing.n_expert_used,
        "n_tokens": routing.n_tokens,
    }
    for name in _TEXTS:
        text = getattr(routing, name)
        if len(text) > MAX_TEXT:
            raise RoutingError("%s has %d characters, at most %d" % (name, len(text), MAX_TEXT))
        header[name] = text
    header["digest"] = routing.digest()
    line = json.dumps(header, separators=(",", ":")).encode("ascii") + b"\n"
    if routing.n_expert <= 256:
        plain = _little_endian(routing.experts)[::2]
    else:
        plain = _little_endian(routing.experts)
    data = line + zlib.compress(plain, 6)
    part = "%s.%d.part" % (path, os.getpid())
    try:
        with open(part, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        if os.path.exists(part):
            os.unlink(part)
    return hashlib.sha256(data).hexdigest()


def read(path: str) -> Routing:
    """Reads and checks a file. Raises :class:`RoutingError` ("<path>: ...") and OSError."""
    with open(path, "rb") as file:
        try:
            return _read(file)
        except RoutingError as error:
            raise RoutingError("%s: %s" % (path, error)) from None


def _read(file: BinaryIO) -> Routing:
    header = _header(file.readline(MAX_HEADER_BYTES + 1))
    shape = {name: _integer(header, name, most) for name, most in _SHAPE_LIMITS.items()}
    texts = {name: _text(header, name) for name in _TEXTS}
    check_shape(**shape)
    values = shape["n_tokens"] * shape["n_layer"] * shape["n_expert_used"]
    size = values if shape["n_expert"] <= 256 else 2 * values
    # zlib never makes data longer by more than this; a file that goes on is not ours.
    most = size + size // 1000 + 1024
    packed = file.read(most + 1)
    if len(packed) > most:
        raise RoutingError(
            "more than %d bytes follow the header, which announces %d indices" % (most, values)
        )
    plain = _inflate(packed, size)
    if shape["n_expert"] <= 256:
        experts = array.array("H", array.array("B", plain))
    else:
        experts = array.array("H")
        experts.frombytes(plain)
        if sys.byteorder == "big":
            experts.byteswap()
    routing = Routing(shape["n_layer"], shape["n_expert"], shape["n_expert_used"], experts, **texts)
    validate(routing)
    if routing.digest() != _text(header, "digest"):
        raise RoutingError("its experts are not the ones that its header's digest was made of")
    return routing


def _header(line: bytes) -> Dict[str, Any]:
    if not line.endswith(b"\n"):
        raise RoutingError("not a routing: no line of JSON at its beginning (docs/routing.md)")
    try:
        header = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        raise RoutingError("not a routing: its first line is not JSON (docs/routing.md)") from None
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise RoutingError('not a routing: its first line does not say "format":"%s"' % FORMAT)
    if header.get("version") != VERSION:
        raise RoutingError(
            "a routing of version %r, which this stbench does not know (it reads %d)"
            % (header.get("version"), VERSION)
        )
    return header


def _integer(header: Dict[str, Any], name: str, most: int) -> int:
    value = header.get(name)
    if type(value) is not int or not 1 <= value <= most:
        raise RoutingError("its header's %s: expected 1 to %d, got %r" % (name, most, value))
    return value


def _text(header: Dict[str, Any], name: str) -> str:
    value = header.get(name, "")
    if not isinstance(value, str) or len(value) > MAX_TEXT:
        raise RoutingError("its header's %s: expected a text of at most %d characters" % (name, MAX_TEXT))
    return value


def check_shape(n_layer: int, n_expert: int, n_expert_used: int, n_tokens: int) -> None:
    """Raises :class:`RoutingError` for a shape that no file may have."""
    given = {"n_layer": n_layer, "n_expert": n_expert, "n_expert_used": n_expert_used, "n_tokens": n_tokens}
    for name, most in _SHAPE_LIMITS.items():
        if not 1 <= given[name] <= most:
            raise RoutingError("%s is %d, expected 1 to %d" % (name, given[name], most))
    if n_expert_used > n_expert:
        raise RoutingError("%d of %d experts cannot be used" % (n_expert_used, n_expert))
    _check_units(n_layer, n_expert)
    values = n_tokens * n_layer * n_expert_used
    if values > MAX_VALUES:
        raise RoutingError("%d indices are too many: at most %d" % (values, MAX_VALUES))


def _check_units(n_layer: int, n_expert: int) -> None:
    if n_layer * n_expert > MAX_UNITS:
        raise RoutingError(
            "%d layers of %d experts are %d experts, which are too many: at most %d in all layers together"
            % (n_layer, n_expert, n_layer * n_expert, MAX_UNITS)
        )


def _inflate(packed: bytes, size: int) -> bytes:
    inflater = zlib.decompressobj()
    try:
        # One byte more than there should be: a stream that grows beyond is stopped there.
        plain = inflater.decompress(packed, size + 1)
    except zlib.error as error:
        raise RoutingError("its compressed experts are damaged (%s)" % error) from None
    if len(plain) != size or not inflater.eof or inflater.unused_data:
        raise RoutingError("its compressed experts do not hold exactly %d bytes; is the file cut off?" % size)
    return plain


def _little_endian(experts: "array.array[int]") -> bytes:
    if sys.byteorder == "little":
        return experts.tobytes()
    swapped = array.array("H", experts)
    swapped.byteswap()
    return swapped.tobytes()
