"""What engines are called: ours, the fake one of tests, llama.cpp's benchmark, and what devices.yaml adds."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from stbench import yamlfile
from stbench.models import catalogue, gemma3n

ENGINE = "sbr"

# The fake one needs no runtime and no model: it serves models called "fake" or "fake:OPTIONS" (see
# stbench/agent/fake.py) and tests this pipeline.
FAKE = "fake"

# llama.cpp's own benchmark. It is known on every device: `stbench peer build` builds it.
LLAMA_BENCH = "llama-bench"

BUILT_IN = (ENGINE, LLAMA_BENCH, FAKE)

# In a label an engine stands where the switches of our own do, and `stbench grid --engine` takes some words.
RESERVED = (*BUILT_IN, "dense", "sparse", "lmhead", "all", "fastest", "auto")

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,39}")


def is_program(engine: str) -> bool:
    """Whether an engine is a program that times itself, and not one that evaluates our token stream."""
    return engine not in (ENGINE, FAKE)


def is_fake(model: str) -> bool:
    """Whether a model is one of the fake engine's."""
    return model.partition(":")[0] == FAKE


def needs_llama_cpp(model: str) -> bool:
    """Whether a model of the catalogue has an architecture that our runtime lacks: Gemma 3n."""
    return model in catalogue.names() and catalogue.lookup(model).spec.architecture == gemma3n.ARCHITECTURE


def left_out(engine: str, model: str, switched: bool) -> str:
    """Why an engine does not run a model, ``switched`` with one of our switches on; "" when it does."""
    if (engine == FAKE) != is_fake(model):
        return f"{model} left out for the engine {engine}"
    if engine == ENGINE and needs_llama_cpp(model):
        return f"{model} is measured through llama.cpp (--engines {LLAMA_BENCH}); left out for {ENGINE}"
    if is_program(engine) and switched:
        return f"{model}: sparse_ffn and sparse_lm_head are switches of {ENGINE}; left out for {engine}"
    return ""


def parse_engines(value: Any) -> list[str]:
    """``sbr,llama-bench`` as typed, or a YAML list. Which names exist depends on the devices; see
    :func:`unknown_engines`. Raises ValueError that completes "expected"."""
    names = [name.strip() for name in value.split(",")] if isinstance(value, str) else value
    if not isinstance(names, list) or not names:
        raise ValueError("an engine or a list of engines, such as sbr,llama-bench")
    if not all(isinstance(name, str) and NAME.fullmatch(name) for name in names):
        raise ValueError("names of engines, such as sbr,llama-bench")
    return list(dict.fromkeys(names))


def unknown_engines(engines: Iterable[str], defined: Iterable[Mapping[str, Any] | None]) -> list[str]:
    """A sentence for each engine that neither we nor any device know. ``defined`` has the ``engines:`` of
    each device."""
    known = list(dict.fromkeys([*BUILT_IN[:2], *(name for device in defined for name in device or {})]))
    return [
        f"--engines: {yamlfile.unknown_name('engine', name, known)}"
        for name in engines
        if name not in known and name != FAKE
    ]
