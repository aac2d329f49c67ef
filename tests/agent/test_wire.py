"""Messages survive the wire, and nothing that arrives there does harm."""

from __future__ import annotations

import dataclasses
import json
import typing
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stbench.agent import wire

MESSAGES = [
    kind
    for kind in vars(wire).values()
    if dataclasses.is_dataclass(kind) and isinstance(kind, type) and kind.__module__ == wire.__name__
]

FLOATS = st.floats(allow_nan=False, allow_infinity=False)
SCALARS: dict[Any, st.SearchStrategy[Any]] = {
    int: st.integers(),
    float: FLOATS,
    str: st.text(max_size=12),
    bool: st.booleans(),
}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | FLOATS | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def strategy(kind: Any) -> st.SearchStrategy[Any]:
    if kind is Any:
        return JSON
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Union:
        return st.none() | strategy(arguments[0])
    if origin is list:
        return st.lists(strategy(arguments[0]), max_size=3)
    if origin is dict:
        return st.dictionaries(st.text(max_size=8), strategy(arguments[1]), max_size=3)
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        fields = {field.name: strategy(hints[field.name]) for field in dataclasses.fields(kind)}
        return st.builds(typing.cast(Any, kind), **fields)
    return SCALARS[kind]


@pytest.mark.parametrize("kind", MESSAGES, ids=lambda kind: kind.__name__)
def test_round_trip(kind: Any) -> None:
    @settings(max_examples=25, deadline=None)
    @given(strategy(kind))
    def check(message: Any) -> None:
        line = wire.dumps(message)
        assert "\n" not in line
        assert wire.loads(kind, line) == message

    check()


def paths(data: Any, prefix: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where something can be broken."""
    found = [prefix] if prefix else []
    items: Any = []
    if isinstance(data, dict):
        items = data.items()
    elif isinstance(data, list):
        items = enumerate(data)
    for key, value in items:
        found.extend(paths(value, (*prefix, key)))
    return found


@settings(max_examples=300, deadline=None)
@given(strategy(wire.RunRecord), st.data())
def test_a_broken_record_is_an_error_or_a_record(message: wire.RunRecord, data: st.DataObject) -> None:
    broken = json.loads(wire.dumps(message))
    *head, last = data.draw(st.sampled_from(paths(broken)))
    target = broken
    for key in head:
        target = target[key]
    if isinstance(target, dict) and data.draw(st.booleans()):
        del target[last]
    else:
        target[last] = data.draw(JSON)
    reason, found = "", None
    try:
        found = wire.from_json(wire.RunRecord, broken)
    except wire.WireError as error:
        reason = str(error)
    if found is None:
        assert reason.startswith("RunRecord")
    else:
        assert wire.loads(wire.RunRecord, wire.dumps(found)) == found


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_any_bytes_are_an_error_with_a_name(line: bytes) -> None:
    with pytest.raises(wire.WireError, match="JobSpec"):
        wire.loads(wire.JobSpec, line.decode("utf-8", "replace"))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"n_prompt": 1, "n_gen": 1.5}', r"n_gen: expected an integer, got 1\.5"),
        ('{"n_prompt": true, "n_gen": 1}', "n_prompt: expected an integer, got true"),
        ('{"n_prompt": 1}', "n_gen: missing"),
        ('{"n_prompt": 1, "n_gen": 1, "seed": NaN}', "NaN is not JSON"),
        ("[]", r"expected an object, got \[\]"),
        ("[" * 100000, "not JSON"),
        ('{"n_prompt": 1, "n_gen": ' + "9" * 90 + "x", "not JSON"),
    ],
)
def test_errors_name_the_place(text: str, reason: str) -> None:
    with pytest.raises(wire.WireError, match=f"^Workload.*{reason}"):
        wire.loads(wire.Workload, text)


@pytest.mark.parametrize("number", ["1e999", "-1e999", "NaN", "Infinity", "1" + "0" * 400])
def test_numbers_that_are_no_float(number: str) -> None:
    with pytest.raises(wire.WireError):
        wire.loads(wire.LimitProbe, f'{{"kind": "read", "duration_s": {number}}}')


def test_no_infinity_hides_where_anything_goes() -> None:
    with pytest.raises(wire.WireError, match="1e999 is too large"):
        wire.loads(wire.Versions, '{"agent": "", "runtime": {"flags": [1e999]}, "library_sha256": ""}')


def test_infinities_do_not_leave() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        wire.dumps(wire.LimitProbe("read", duration_s=float("inf")))


def test_unknown_fields_are_ignored_and_missing_ones_take_their_default() -> None:
    found = wire.from_json(wire.Workload, {"n_prompt": 1, "n_gen": 2, "of_a_newer_version": [1]})
    assert found == wire.Workload(1, 2, 0, 0)
