"""Dataclasses as JSON and back, checked field by field against their annotations.

What comes from the other side is not trusted: an error names the path
(``RunRecord.samples.decode_ns[3]: expected an integer, got "x"``). Unknown fields are ignored, so an older
host reads a newer record; missing fields take their default or are an error. Annotations may be int, float,
str, bool, Any, Optional, List, Dict with string keys, and dataclasses of these.
"""

import dataclasses
import functools
import json
import math
import typing
from typing import Any, Callable, Dict

T = typing.TypeVar("T")


class WireError(ValueError):
    """A message that does not have the shape it should have."""


def to_json(message: Any) -> Any:
    """A dataclass as JSON-ready dicts and lists, in field order."""
    return dataclasses.asdict(message)


def dumps(message: Any) -> str:
    """One line. NaN and infinities are refused: they are not JSON."""
    return json.dumps(to_json(message), separators=(",", ":"), allow_nan=False)


def loads(cls: "typing.Type[T]", line: str) -> T:
    """The inverse of :func:`dumps`. Raises :class:`WireError`."""
    try:
        data = json.loads(line, parse_constant=_no_constant, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise WireError("%s: not JSON: %s" % (cls.__name__, error)) from None
    return from_json(cls, data)


def from_json(cls: "typing.Type[T]", data: Any) -> T:
    """Checks ``data`` against the annotations of ``cls``. Raises :class:`WireError` naming the path."""
    try:
        return typing.cast(T, _reader(typing.cast(Any, cls))(data))
    except _Unfit:
        # What is wrong, and where, is looked for only where something is.
        return typing.cast(T, _decode(cls, data, cls.__name__))


def _no_constant(name: str) -> Any:
    raise ValueError("%s is not JSON" % name)


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError("%s is too large" % text)
    return value


def _decode(kind: Any, data: Any, path: str) -> Any:
    if kind is Any:
        return data
    origin = typing.get_origin(kind)
    if origin is typing.Union:
        if data is None:
            return None
        return _decode(typing.get_args(kind)[0], data, path)
    if origin is list:
        if not isinstance(data, list):
            raise _mismatch(path, "a list", data)
        item = typing.get_args(kind)[0]
        return [_decode(item, value, "%s[%d]" % (path, i)) for i, value in enumerate(data)]
    if origin is dict:
        if not isinstance(data, dict):
            raise _mismatch(path, "an object", data)
        item = typing.get_args(kind)[1]
        return {key: _decode(item, value, "%s.%s" % (path, _shown(key))) for key, value in data.items()}
    if dataclasses.is_dataclass(kind):
        return _decode_object(kind, data, path)
    if kind is float and isinstance(data, int) and not isinstance(data, bool):
        try:
            return float(data)
        except OverflowError:
            raise _mismatch(path, _NAMES[kind], data) from None
    if not isinstance(data, kind) or (isinstance(data, bool) and kind is not bool):
        raise _mismatch(path, _NAMES[kind], data)
    if kind is float and not math.isfinite(data):
        raise _mismatch(path, _NAMES[kind], data)
    return data


@functools.lru_cache(maxsize=None)
def _hints(kind: Any) -> Dict[str, Any]:
    return typing.get_type_hints(kind)


def _decode_object(kind: Any, data: Any, path: str) -> Any:
    if not isinstance(data, dict):
        raise _mismatch(path, "an object", data)
    hints = _hints(kind)
    values = {}
    for spec in dataclasses.fields(kind):
        if spec.name in data:
            values[spec.name] = _decode(hints[spec.name], data[spec.name], "%s.%s" % (path, spec.name))
        elif spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING:
            raise WireError("%s.%s: missing" % (path, spec.name))
    return kind(**values)


# ---- quickly -----------------------------------------------------------------------------------------
#
# Of a million records each field is looked at. A reader is made once for each annotation; it takes what
# json.loads gives where that fits exactly, and leaves everything else to _decode above.


class _Unfit(Exception):
    """Not plainly what the annotation says."""


@functools.lru_cache(maxsize=None)
def _reader(kind: Any) -> Callable[[Any], Any]:
    origin = typing.get_origin(kind)
    if kind is Any:
        return lambda data: data
    if origin is typing.Union:
        return _optional(_reader(typing.get_args(kind)[0]))
    if origin is list:
        return _list_of(typing.get_args(kind)[0])
    if origin is dict:
        return _dict_of(_reader(typing.get_args(kind)[1]))
    if dataclasses.is_dataclass(kind):
        return _object_of(kind)
    return _number if kind is float else _exactly(kind)


def _exactly(kind: Any) -> Callable[[Any], Any]:
    def read(data: Any) -> Any:
        if type(data) is not kind:
            raise _Unfit
        return data

    return read


def _number(data: Any) -> float:
    if type(data) is int and -(2**53) <= data <= 2**53:
        return float(data)
    # What is infinite or no number differs from itself.
    if type(data) is not float or data - data != 0.0:
        raise _Unfit
    return data


def _optional(item: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda data: None if data is None else item(data)


def _list_of(kind: Any) -> Callable[[Any], Any]:
    if kind in (int, str, bool):
        only = {kind}

        def plain(data: Any) -> Any:
            if type(data) is not list or not set(map(type, data)) <= only:
                raise _Unfit
            return list(data)

        return plain
    item = _reader(kind)

    def read(data: Any) -> Any:
        if type(data) is not list:
            raise _Unfit
        return [item(value) for value in data]

    return read


def _dict_of(item: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def read(data: Any) -> Any:
        if type(data) is not dict:
            raise _Unfit
        return {key: item(value) for key, value in data.items()}

    return read


def _object_of(kind: Any) -> Callable[[Any], Any]:
    hints = _hints(kind)
    readers = {spec.name: _reader(hints[spec.name]) for spec in dataclasses.fields(kind)}
    required = {
        spec.name
        for spec in dataclasses.fields(kind)
        if spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING
    }

    def read(data: Any) -> Any:
        if type(data) is not dict or not required <= data.keys():
            raise _Unfit
        return kind(**{name: readers[name](data[name]) for name in readers if name in data})

    return read


_NAMES = {int: "an integer", float: "a number", str: "a string", bool: "true or false"}


def _shown(key: str) -> str:
    """A key of the other side's choice, as a message may have it."""
    return "".join(c if c.isprintable() else "?" for c in key[:60])


def _mismatch(path: str, expected: str, data: Any) -> WireError:
    try:
        shown = json.dumps(data)
    except (ValueError, TypeError, RecursionError):
        shown = type(data).__name__
    if len(shown) > 60:
        shown = shown[:57] + "..."
    return WireError("%s: expected %s, got %s" % (path, expected, shown))
