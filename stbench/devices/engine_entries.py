"""``engines:`` of devices.yaml: llama-bench at another path, and any command line as an engine.

Top-level engines are for all devices; a device's own of the same name takes their place.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pydantic

from stbench import yamlfile
from stbench.agent import external
from stbench.agent.wire import Program, Reading
from stbench.devices.engine_names import LLAMA_BENCH, NAME, RESERVED

# What the adapter itself says to llama-bench.
_OURS = {
    *("-m", "--model", "-t", "--threads", "-p", "--n-prompt", "-n", "--n-gen", "-pg", "-d", "--n-depth"),
    *("-r", "--repetitions", "-o", "--output", "-ctk", "--cache-type-k", "-ctv", "--cache-type-v"),
    *("-lm", "--load-mode", "-mmp", "--mmap", "-C", "--cpu-mask", "--cpu-strict"),
}


@dataclass(frozen=True)
class EngineEntry:
    """A program of devices.yaml. An empty ``program.command[0]`` of llama-bench: the one that `stbench peer
    build` made. ``model_layout``: which file of a model with transposed down matrices it can read.
    ``timeout_s`` None: the device's. ``sparse``: what it always skips of a model that allows it, "ffn" and
    "lm_head"."""

    name: str
    program: Program
    model_layout: str = "standard"
    timeout_s: float | None = None
    sparse: tuple[str, ...] = ()


BUILT_LLAMA_BENCH = EngineEntry(LLAMA_BENCH, Program(LLAMA_BENCH, [""]))


def _words(value: Any) -> list[str] | None:
    """A list of words and numbers as words; None for anything else."""
    if not isinstance(value, list):
        return None
    if not all(isinstance(word, str | int | float) and not isinstance(word, bool) for word in value):
        return None
    words = [str(word) for word in value]
    return None if any("\0" in word for word in words) else words


def _command(value: Any) -> Any:
    words = _words(value)
    if not words or not words[0]:
        raise ValueError("a command and its arguments as a list, such as [llama-cli, -m, '{model}']")
    bad = external.unknown(words)
    if bad is not None:
        known = [f"{{{name}}}" for name in external.PLACEHOLDERS]
        if not bad.name:
            raise ValueError("braces around a placeholder, or doubled ones for a brace itself ({{, }})")
        said = yamlfile.unknown_name("placeholder", f"{{{bad.name}}}", known)
        raise ValueError(f"known placeholders ({said})")
    if "model" not in external.placeholders(words):
        raise ValueError("a command with {model}: each model of a sweep is another file")
    return words


def _args(value: Any) -> Any:
    words = _words(value)
    if words is None:
        raise ValueError("a list of words, such as [-fa, 1]")
    ours = [word for word in words if word in _OURS]
    if ours:
        raise ValueError(f"arguments beside those that a sweep sets ({', '.join(ours)} are its own)")
    return words


def _environment(value: Any) -> Any:
    if isinstance(value, dict) and all(
        re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name)
        and isinstance(text, str | int | float)
        and not isinstance(text, bool)
        and "\0" not in str(text)
        for name, text in value.items()
    ):
        return {name: str(text) for name, text in value.items()}
    raise ValueError("variables and their values as strings, such as {OMP_NUM_THREADS: '4'}")


def _regex(value: Any) -> Any:
    try:
        groups = re.compile(value).groups
    except (re.error, TypeError, RecursionError, OverflowError):
        groups = -1
    if groups != 1:
        raise ValueError(r"a regular expression with one group, the number, such as 'eval.* ([\d.]+) tokens'")
    return value


def _path(value: Any) -> Any:
    if isinstance(value, str) and all(value.split(".")):
        return value
    raise ValueError("a path of keys and indices, such as timings.predicted_per_second or 0.avg_ts")


def _absolute(value: Any) -> Any:
    if isinstance(value, str) and value.startswith(("/", "~/")) and "\0" not in value:
        return value
    raise ValueError("an absolute path, or one that begins with ~/")


Words = Annotated[list[str], pydantic.BeforeValidator(_args)]
Command = Annotated[list[str], pydantic.BeforeValidator(_command)]
Environment = Annotated[dict[str, str], pydantic.BeforeValidator(_environment)]


class _Entry(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", strict=True, frozen=True)

    environment: Environment = {}
    timeout: Annotated[float, pydantic.Field(gt=0, le=86400)] | None = None


class ReadingEntry(pydantic.BaseModel):
    """Where the tokens/s stand in an output: by ``regex`` or by ``json``."""

    model_config = pydantic.ConfigDict(extra="forbid", strict=True, frozen=True)

    regex: Annotated[str, pydantic.BeforeValidator(_regex)] = ""
    json_path: Annotated[str, pydantic.BeforeValidator(_path), pydantic.Field(alias="json")] = ""

    @pydantic.model_validator(mode="after")
    def _one(self) -> ReadingEntry:
        if bool(self.regex) == bool(self.json_path):
            raise ValueError("either regex or json")
        return self


class LlamaBenchEntry(_Entry):
    """``llama-bench:``."""

    path: Annotated[str, pydantic.BeforeValidator(_absolute)] | None = None
    args: Words = []


class ExternalEntry(_Entry):
    """Any other engine."""

    command: Command
    # Checked by themselves, as ReadingEntry, so that messages name the keys of that.
    decode: Any = None
    prefill: Any = None
    model_layout: Literal["standard", "transposed"] = "standard"
    sparse: list[Literal["ffn", "lm_head"]] = []

    @pydantic.model_validator(mode="after")
    def _some_number(self) -> ExternalEntry:
        if self.decode is None and self.prefill is None:
            raise ValueError("decode or prefill: where the tokens/s stand in the output")
        if self.decode is not None and "n_gen" not in external.placeholders(self.command):
            raise ValueError("a command with {n_gen}, since its decoding is read")
        return self


def parse_entries(document: yamlfile.Document, data: Any, path: yamlfile.Path) -> dict[str, EngineEntry]:
    """The engines found at ``path``; what is wrong with them is added to ``document``."""
    if not isinstance(data, dict):
        document.add(path, f"expected a mapping of engines, got {yamlfile.shown(data)}")
        return {}
    entries: dict[str, EngineEntry] = {}
    for name, written in data.items():
        where = (*path, name)
        if name == LLAMA_BENCH:
            bench = yamlfile.validate(document, LlamaBenchEntry, {} if written is None else written, where)
            if bench is not None:
                entries[name] = _llama_bench(bench)
        elif name in RESERVED:
            document.add(where, "this name has a meaning of its own; give the engine another one")
        elif not NAME.fullmatch(name):
            document.add(where, "an engine's name has at most 40 letters, digits, dots, dashes, underscores")
        else:
            entry = yamlfile.validate(document, ExternalEntry, written, where)
            readings = _readings(document, written, where)
            if entry is not None:
                entries[name] = _external(name, entry, readings)
    return entries


def _llama_bench(entry: LlamaBenchEntry) -> EngineEntry:
    program = Program(LLAMA_BENCH, [entry.path or "", *entry.args], dict(entry.environment))
    return EngineEntry(LLAMA_BENCH, program, "standard", entry.timeout)


def _readings(document: yamlfile.Document, written: Any, path: yamlfile.Path) -> dict[str, Reading]:
    found: dict[str, Reading] = {}
    for key in ("decode", "prefill"):
        data = written.get(key) if isinstance(written, dict) else None
        if data is not None:
            read = yamlfile.validate(document, ReadingEntry, data, (*path, key))
            if read is not None:
                found[key] = Reading(read.regex, read.json_path)
    return found


def _external(name: str, entry: ExternalEntry, readings: dict[str, Reading]) -> EngineEntry:
    program = Program("external", list(entry.command), dict(entry.environment), **readings)
    return EngineEntry(name, program, entry.model_layout, entry.timeout, tuple(entry.sparse))


def engines_of(
    top: Mapping[str, EngineEntry], own: Sequence[Mapping[str, EngineEntry]]
) -> dict[str, EngineEntry]:
    """What a device has: ``own`` are its engines and those of the devices that it extends, nearest first."""
    found = dict(top)
    for entries in reversed(own):
        found.update(entries)
    return found
