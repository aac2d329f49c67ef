"""llama-bench, llama.cpp's own benchmark: its flags, its JSON lines, and what its log says of the weights.

One process measures one test, once (``-r 1``): a prompt of n tokens, or n generated tokens, behind ``-d``
tokens in the KV cache. It warms up by itself, loads before its clock starts, and its output has the test's
nanoseconds. Which flags there are is read from ``--help``, because they change between versions.
"""

import math
import re
from typing import Any, Dict, FrozenSet, List, NamedTuple, Optional, Sequence

from .external import documents
from .wire import Settings

REPACK_FLAG = "--repack"

# What a test needs of its result.
_NEEDED = ("n_prompt", "n_gen", "samples_ns")

# Buffers of the CPU backend that hold weights in another layout, in memory of their own.
_REPACKED = re.compile(r"\b(CPU_REPACK|CPU_AARCH64|CPU_KLEIDIAI|AMX)\s+model buffer size\s*=\s*([\d.]+) MiB")
_MODEL_BUFFER = re.compile(r"\bmodel buffer size\s*=")
_CONTEXT = re.compile(r"\bllama_context:\s+n_ctx\s+=\s*(\d+)")
_KV_BYTES = re.compile(r"\bllama_kv_cache\w*:.*\bKV buffer size\s*=\s*([\d.]+) MiB")

# ``-v`` prints a line per tensor and graph input; what the log is read for is in the others.
_NOISE = (
    "create_tensor:",
    "load_tensors: layer",
    "llama_graph_n_input_tensors:",
    "llama_kv_cache: layer",
    "print_info:",
    "llama_model_loader: - kv",
)


class ResultError(ValueError):
    """The output has no usable result."""


class Test(NamedTuple):
    """Tokens in the prompt or generated (one of them 0), behind ``n_depth`` in the KV cache."""

    n_prompt: int
    n_gen: int
    n_depth: int

    @property
    def label(self) -> str:
        """As llama-bench writes it: ``pp39``, ``tg256@d39``."""
        name = "pp%d" % self.n_prompt if self.n_prompt else "tg%d" % self.n_gen
        return name + ("@d%d" % self.n_depth if self.n_depth else "")


class Log(NamedTuple):
    """What ``-v`` told. ``repacked`` None: it did not tell; numbers are 0 then."""

    repacked: Optional[bool]
    n_ctx: int
    kv_bytes: int


def tests(n_prompt: int, n_gen: int, n_depth: int) -> List[Test]:
    """A workload as llama-bench's tests: the prompt behind the depth, the generation behind both. (Its own
    ``-pg`` would give one time for both phases.)"""
    found = [Test(n_prompt, 0, n_depth)] if n_prompt else []
    return found + ([Test(0, n_gen, n_depth + n_prompt)] if n_gen else [])


def flags(help_text: str) -> FrozenSet[str]:
    """The flags that ``--help`` lists."""
    listed = re.findall(r"^\s+(-[^<(\n]*)", help_text, re.MULTILINE)
    return frozenset(flag for line in listed for flag in re.findall(r"(?<![\w-])--?[a-zA-Z][\w-]*", line))


def arguments(
    known: FrozenSet[str],
    model: str,
    threads: int,
    cpus: Sequence[int],
    settings: Settings,
    test: Test,
    in_place: bool = False,
) -> List[str]:
    """The arguments for one test. ``in_place``: weights are computed from the mapped file, not from repacked
    copies. Raises ResultError for what this llama-bench has no flag for.

    Batch sizes stay llama.cpp's own (2048, computed in parts of 512) unless the user adds ``-b`` or ``-ub``;
    the context is what the test needs, as always in llama-bench."""
    words = ["-m", model, "-t", str(threads), "-p", str(test.n_prompt), "-n", str(test.n_gen), "-r", "1"]
    words += ["-o", "jsonl", "-ctk", settings.kv_type, "-ctv", settings.kv_type]
    if "-v" in known:
        words.append("-v")
    if test.n_depth:
        _need(known, "-d", "tokens in the KV cache before the test")
        words += ["-d", str(test.n_depth)]
    if "-lm" in known:
        words += ["-lm", "none" if settings.load == "read" else "mmap"]
    else:
        _need(known, "-mmp", "load %s" % settings.load)
        words += ["-mmp", "0" if settings.load == "read" else "1"]
    if in_place:
        _need(known, REPACK_FLAG, "weights that are not copied")
        words += [REPACK_FLAG, "0"]
    if cpus:
        _need(known, "-C", "threads that are pinned to CPUs")
        words += ["-C", "0x%x" % sum(1 << cpu for cpu in cpus), "--cpu-strict", "1"]
    return words


def _need(known: FrozenSet[str], flag: str, what: str) -> None:
    if flag not in known:
        raise ResultError("this llama-bench has no flag %s for %s" % (flag, what))


def result(stdout: str, test: Test) -> Dict[str, Any]:
    """The JSON object of ``test`` among whatever else was printed; unknown keys are left in it.
    ``samples_ns`` is checked to be one duration above 0, whole ns. Raises :class:`ResultError`."""
    found: List[Dict[str, Any]] = []
    for document in documents(stdout):
        for item in document if isinstance(document, list) else [document]:
            if isinstance(item, dict) and any(key in item for key in _NEEDED):
                found.append(item)
    if not found:
        raise ResultError("llama-bench printed no result")
    missing = [[key for key in _NEEDED if key not in item] for item in found]
    if all(missing):
        fewest = min(missing, key=lambda keys: len(keys))
        raise ResultError("llama-bench printed a result without %s" % ", ".join(fewest))
    for item, absent in zip(found, missing):
        if absent:
            continue
        if [item["n_prompt"], item["n_gen"], item.get("n_depth") or 0] == list(test):
            ns = _duration(item["samples_ns"])
            return dict(item, n_prompt=test.n_prompt, n_gen=test.n_gen, samples_ns=[ns])
    raise ResultError("llama-bench printed no result of %s" % test.label)


def _duration(samples: Any) -> int:
    if not isinstance(samples, list) or len(samples) != 1:
        raise ResultError("llama-bench was asked for one repetition; samples_ns is %s" % _shown(samples))
    ns = samples[0]
    if isinstance(ns, bool) or not isinstance(ns, (int, float)) or not 1 <= ns < 1e18:
        raise ResultError("samples_ns is no duration: %s" % _shown(samples))
    return int(ns)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def whole_number(item: Dict[str, Any], key: str) -> int:
    """A count in a result; 0 when it is absent or none."""
    value = item.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return 0
    return max(int(value), 0)


def load_mode(item: Dict[str, Any]) -> str:
    """ "mmap", "read", or "" when the result does not say."""
    if isinstance(item.get("use_mmap"), bool):
        return "mmap" if item["use_mmap"] else "read"
    mode = item.get("load_mode")
    return (
        {"mmap": "mmap", "mmap+mlock": "mmap", "none": "read"}.get(mode, "") if isinstance(mode, str) else ""
    )


def read_log(stderr: str) -> Log:
    """What the log of ``-v`` says. Weights are repacked when a buffer of that kind has more than nothing."""
    repacked = None
    if _MODEL_BUFFER.search(stderr):
        repacked = any(float(size) > 0 for _, size in _REPACKED.findall(stderr))
    context = _CONTEXT.search(stderr)
    kv_mib = sum(float(size) for size in _KV_BYTES.findall(stderr))
    return Log(repacked, int(context.group(1)) if context else 0, int(kv_mib * (1 << 20)))


def is_noise(line: str) -> bool:
    """Whether a line of the log is one of thousands."""
    return line.startswith(_NOISE)
