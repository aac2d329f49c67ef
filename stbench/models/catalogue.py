"""Model names -> synthetic specifications at real shapes, or the path of a user's own GGUF.

Nobody needs a 16 GB download to try the harness: the runtime writes a GGUF with the shapes, types and layout
of the released model and with statistics that are set, not accidental (``Statistics``). Whatever rests on
such weights says so, with the profile's name.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from stbench import yamlfile
from stbench.agent.wire import SynthSpec
from stbench.errors import ModelError
from stbench.models import gemma3n

# Bytes per block and weights per block, as in the GGUF format.
BLOCKS = {
    "f32": (4, 1),
    "f16": (2, 1),
    "bf16": (2, 1),
    "q8_0": (34, 32),
    "q4_0": (18, 32),
    "q4_1": (20, 32),
    "q4_k": (144, 256),
    "q6_k": (210, 256),
}

SEED = 20250728
STANDARD_SUFFIX = ":standard"

# Share of neurons that ReLU sets to zero, in 1/1000: the technical report, section 5.3, gives medians of 0.9
# to 1.0 in the first layers and above 0.6 in every other.
_FIRST_LAYERS = (970, 950, 920, 880)
_LOW, _HIGH = 620, 720


def report_zero_share(n_layer: int) -> list[int]:
    """The profile "report-5.3": the first four layers as given, then 0.62 rising evenly to 0.72."""
    rest = max(n_layer - len(_FIRST_LAYERS), 0)
    step = max(rest - 1, 1)
    tail = [_LOW + (_HIGH - _LOW) * i // step for i in range(rest)]
    return [*_FIRST_LAYERS[:n_layer], *tail]


@dataclass(frozen=True)
class Entry:
    """One line of the catalogue. ``profile`` names the statistics of the synthetic weights; ``source`` says
    what the shapes are of ("": of nothing released); ``note`` is for people."""

    name: str
    spec: SynthSpec
    profile: str
    source: str
    note: str = ""

    @property
    def sizes(self) -> Sizes:
        """Parameters and bytes, computed from the shapes alone."""
        return sizes(self.spec)


@dataclass(frozen=True)
class Sizes:
    """``params_active``: used for one token (of the experts only those selected, of an embedding one row).
    ``weight_bytes``: of all tensors; the file is larger by its header. ``bundle_bytes``: of what a bundle of
    the model holds (docs/bundles.md): the experts, or the layers' matrices; 0: not known."""

    params: int
    params_active: int
    weight_bytes: int
    bundle_bytes: int = 0


QK_NORM = ("qwen3", "qwen3moe")


def sizes(spec: SynthSpec) -> Sizes:
    """Counts a model's tensors. Norms and the router are F32, matrices have ``spec.weight_type``."""
    if spec.architecture == gemma3n.ARCHITECTURE:
        return _gemma3n_sizes(spec)
    d, v = spec.n_embd, spec.n_vocab
    q, kv = spec.n_head * spec.head_dim, spec.n_head_kv * spec.head_dim
    attention = 2 * d * q + 2 * d * kv
    floats = 2 * d + (2 * spec.head_dim if spec.architecture in QK_NORM else 0)
    experts, used = max(spec.n_expert, 1), max(spec.n_expert_used, 1)
    ffn = 3 * d * spec.n_ff
    router = d * spec.n_expert
    layers = spec.n_layer
    head = d * v
    predictor = spec.predictor_rank * (d + v)
    embedding = 0 if spec.tied_output else d * v

    matrices = layers * (attention + experts * ffn) + head + embedding + predictor
    vectors = layers * (floats + router) + d
    unused = layers * (experts - used) * ffn
    total = matrices + vectors
    # A tied embedding is the output matrix, all of which is read anyway. The predictor replaces work of the
    # output matrix and is not counted beside it.
    active = total - unused - predictor - (0 if spec.tied_output else embedding - d)
    size, weights = BLOCKS[spec.weight_type]
    weight_bytes = matrices * size // weights + 4 * vectors
    # The predictor is stored as Q4_0 whatever the other matrices are.
    q4_size, q4_weights = BLOCKS["q4_0"]
    weight_bytes += predictor * q4_size // q4_weights - predictor * size // weights
    units = experts * ffn if spec.n_expert else attention + ffn
    return Sizes(total, active, weight_bytes, layers * units * size // weights)


def _gemma3n_sizes(spec: SynthSpec) -> Sizes:
    params = {name: math.prod(shape) for name, (shape, _) in gemma3n.tensors(spec).items()}
    types = {name: kind for name, (_, kind) in gemma3n.tensors(spec).items()}
    size = sum(count * BLOCKS[types[name]][0] // BLOCKS[types[name]][1] for name, count in params.items())
    table = params[gemma3n.TABLE]
    total = sum(params.values())
    return Sizes(total, total - table + table // spec.n_vocab, size)


_QWEN3: dict[str, Any] = {
    "n_layer": 28,
    "n_embd": 1024,
    "n_head": 16,
    "n_head_kv": 8,
    "head_dim": 128,
    "n_ff": 3072,
    "n_vocab": 151936,
    "n_ctx_train": 40960,
    "weight_type": "q4_0",
    "seed": SEED,
    "rope_freq_base": 1e6,
}
_SMALLTHINKER = _QWEN3 | {
    "n_layer": 32,
    "n_embd": 1536,
    "n_head": 12,
    "n_head_kv": 2,
    "n_ff": 768,
    "n_ctx_train": 32768,
    "rope_freq_base": 1.5e6,
    "n_expert": 32,
    "n_expert_used": 4,
    "transposed_down": True,
    "predictor_rank": 128,
    "hot_experts": 8,
    "hot_share": 600,
    "lm_head_keep": 100,
}
_GEMMA3N = _QWEN3 | {
    "n_layer": 30,
    "n_embd": 2048,
    "n_head": 8,
    "n_head_kv": 2,
    "head_dim": 256,
    "n_ff": 8192,
    "n_vocab": 262144,
    "n_ctx_train": 32768,
    "sliding_window": 512,
}


def _smallthinker(name: str, **shape: Any) -> SynthSpec:
    spec = SynthSpec(architecture="smallthinker", name=name, **(_SMALLTHINKER | shape))
    return spec if spec.zero_share else replace(spec, zero_share=report_zero_share(spec.n_layer))


def _dense(architecture: str, name: str, **shape: Any) -> SynthSpec:
    return SynthSpec(architecture=architecture, name=name, **(_QWEN3 | shape))


def _gemma3n(name: str, **shape: Any) -> SynthSpec:
    return SynthSpec(architecture=gemma3n.ARCHITECTURE, name=name, **(_GEMMA3N | shape))


_TINY: dict[str, Any] = {
    "n_layer": 2,
    "n_embd": 64,
    "n_head": 4,
    "n_head_kv": 2,
    "head_dim": 32,
    "n_vocab": 512,
    "n_ctx_train": 4096,
}

ENTRIES = (
    Entry(
        "smallthinker-4b",
        _smallthinker("SmallThinker-4B-A0.6B"),
        "report-5.3",
        "SmallThinker-4BA0.6B-Instruct",
        "down transposed, lm_head predictor of rank 128 that keeps 10 %, 8 of 32 experts take 60 %",
    ),
    Entry(
        "smallthinker-21b",
        _smallthinker(
            "SmallThinker-21B-A3B",
            n_layer=52,
            n_embd=2560,
            n_head=28,
            n_head_kv=4,
            n_ctx_train=16384,
            n_expert=64,
            n_expert_used=6,
            sliding_window=4096,
            tied_output=False,
            predictor_rank=0,
            lm_head_keep=0,
            hot_experts=16,
        ),
        "report-5.3",
        "SmallThinker-21BA3B-Instruct",
        "down transposed, no predictor (published with the sparse FFN only), 16 of 64 experts take 60 %",
    ),
    Entry("qwen3-0.6b", _dense("qwen3", "Qwen3-0.6B"), "uniform", "Qwen3-0.6B"),
    Entry("qwen3-1.7b", _dense("qwen3", "Qwen3-1.7B", n_embd=2048, n_ff=6144), "uniform", "Qwen3-1.7B"),
    Entry(
        "qwen3-30b-a3b",
        _dense(
            "qwen3moe",
            "Qwen3-30B-A3B",
            n_layer=48,
            n_embd=2048,
            n_head=32,
            n_head_kv=4,
            n_ff=768,
            n_expert=128,
            n_expert_used=8,
            tied_output=False,
        ),
        "uniform",
        "Qwen3-30B-A3B",
        "8 of 128 experts, none preferred",
    ),
    Entry(
        "gemma3n-e2b",
        _gemma3n("Gemma-3n-E2B"),
        "uniform",
        "gemma-3n-E2B-it",
        "run by llama.cpp (engine llama-bench); all Q4_0, where a usual file has token_embd in Q6_K",
    ),
    Entry(
        "gemma3n-e4b",
        _gemma3n("Gemma-3n-E4B", n_layer=35, n_ff=16384),
        "uniform",
        "gemma-3n-E4B-it",
        "run by llama.cpp (engine llama-bench); all Q4_0, where a usual file has token_embd in Q6_K",
    ),
    Entry(
        "tiny-smallthinker",
        _smallthinker(
            "tiny-smallthinker",
            **{**_TINY, "n_layer": 4},
            # Not 64: with n_ff == n_embd the two down layouts have one shape, and the file would read as
            # standard.
            n_ff=96,
            n_expert=8,
            n_expert_used=2,
            predictor_rank=64,
            hot_experts=2,
            zero_share=[900, 700, 620, 720],
            lm_head_keep=250,
        ),
        "tiny",
        "",
        "for tests",
    ),
    Entry("tiny-qwen3", _dense("qwen3", "tiny-qwen3", **_TINY, n_ff=128), "uniform", "", "for tests"),
    Entry(
        "tiny-qwen3moe",
        _dense("qwen3moe", "tiny-qwen3moe", **_TINY, n_ff=96, n_expert=8, n_expert_used=3, tied_output=False),
        "uniform",
        "",
        "for tests",
    ),
    Entry(
        "tiny-gemma3n",
        # Six layers: the fifth is the first that attends without a window.
        _gemma3n("tiny-gemma3n", **{**_TINY, "n_layer": 6}, n_ff=128, sliding_window=64),
        "uniform",
        "",
        "for tests",
    ),
    Entry(
        "tiny-llama",
        _dense("llama", "tiny-llama", **_TINY, n_ff=128, rope_freq_base=1e4, rms_eps=1e-5),
        "uniform",
        "",
        "for tests",
    ),
)

_BY_NAME = {entry.name: entry for entry in ENTRIES}


def names() -> list[str]:
    """Every name that :func:`lookup` knows, standard-layout twins included."""
    return [name for entry in ENTRIES for name in (entry.name, *_twin_names(entry))]


def _twin_names(entry: Entry) -> list[str]:
    return [entry.name + STANDARD_SUFFIX] if entry.spec.transposed_down else []


def lookup(name: str) -> Entry:
    """The entry of a name. Raises :class:`ModelError` with the nearest known name."""
    entry = _BY_NAME.get(name.removesuffix(STANDARD_SUFFIX))
    if entry is None or (name.endswith(STANDARD_SUFFIX) and not entry.spec.transposed_down):
        raise ModelError(
            yamlfile.unknown_name("model", name, names()),
            hint="`stbench models` lists them; a GGUF file of your own is given by its path (./model.gguf)",
        )
    return standard_twin(entry) if name.endswith(STANDARD_SUFFIX) else entry


def standard_twin(entry: Entry) -> Entry:
    """The same weight values with [F,D] down matrices and no predictor: what llama.cpp can load."""
    spec = replace(entry.spec, transposed_down=False, predictor_rank=0, lm_head_keep=0)
    return replace(entry, name=entry.name + STANDARD_SUFFIX, spec=spec, note="standard layout, no predictor")


def is_path(name: str) -> bool:
    """Whether a ``--models`` item means a file rather than a name of the catalogue."""
    return "/" in name or name.endswith(".gguf")


def stem(path: str) -> str:
    """How a user's own file is called in labels: its name without ``.gguf``, in characters a label may
    have."""
    text = Path(path).name.removesuffix(".gguf")
    return "".join(c if (c.isalnum() and c.isascii()) or c in "._-" else "-" for c in text) or "model"
