"""RunRecords -> a tidy DataFrame: one row per record, that is per process, so a replicate is a row.

Nothing is averaged here. Speeds exist only for records that ended "ok" and whose samples make sense
(``usable``); everything else keeps its row with NaN speeds, its status and, in ``problem``, what is wrong.

========================  ================================================================================
``decode_tps``            tokens/s of decoding: n_gen / sum(decode_ns); programs give the sum only
``prefill_tps``           tokens/s of prefill: sum(prefill_tokens) / sum(prefill_ns)
``ttft_ms``               time to first token, as recorded
``load_ms``               opening the model and laying its weights out, in no other time
``tpot_ms``               time per output token: sum(decode_ns) / n_gen
``tpot_p95_ms``           95th percentile of decode_ns, where these are of single tokens; likewise tpot_p50_ms
                          and tpot_p99_ms
``weight_bytes_per_token``  bytes of weights that a decode step really read, by the runtime's own count
``weight_gb_per_s``       the same times decode_tps, in 1e9 bytes/s
``active_share``          neurons with a non-zero ReLU output / neurons examined, decode
``lm_head_share``         output rows computed / (tokens x vocabulary), decode
``threads_why``           why -t auto chose them; "" where a person did
``threads``               effective if the run got that far, else requested; 0: unknown ("all" requested)
``read_gb_per_s``         streaming read bandwidth beside the run, mean of before and after, 1e9 bytes/s
``gather_gb_per_s``       the same of whole rows in random order
``core_gb_per_s``         the same of what the cores' own caches hold: how fast the cores were
``judged_by``             which of these tells whether the run was disturbed: "memory" or "cores"
``disturbed``             the machine was not itself (:mod:`stbench.records.disturbance`), False if unknown
``off_level``             disturbed only in that the campaign's bandwidth was another; steady by itself
``disturbance``           why, in words; "" when not disturbed
``other_cpu_share``       CPU time of other processes on the run's CPUs / time, in CPUs
``throttled_by``          what showed that the device throttled; "" where nothing did
``joules_per_token``      energy of the decode phase / its tokens, nothing subtracted for an idle machine
``gate``                  how the wait for a cool device ended; "" where there was none
``limit_share``           speed / what the memory allowed then (:mod:`stbench.records.limit_share`)
``limit_why``             why there is no such number though bandwidth was probed
``arguments``             of a program, as devices.yaml has them: variables, then words; "" for our own engine
``provenance``            "measured" by our agent, or "imported" from another program's output
``memory_limit_bytes``    and what follows it: :mod:`stbench.records.limited_columns`
========================  ================================================================================
"""

import math
import shlex
from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

from stbench.agent.wire import ModelShape, PhaseCounters, Program, RunRecord, Samples, SynthSpec
from stbench.models import catalogue
from stbench.records import limited_columns, storage_bound
from stbench.records.disturbance import Verdict, judge, other_cpu_share, rates_beside, yardstick
from stbench.records.limit_share import limit_share
from stbench.records.one_run import unique_records as unique_records
from stbench.sweeps.axes import AUTO_FFN
from stbench.sweeps.sweep import ENGINE, switches_label, workload_label

# By this share a real file's weight bytes may differ from the catalogue's shapes in Q4_0: converters
# differ in small tensors (norms, a predictor), not in matrices.
SIZE_TOLERANCE = 0.03

# Column -> dtype. Also the schema of the empty frame.
COLUMNS: dict[str, str] = {
    "record_id": "object",
    "label": "object",
    "campaign": "object",
    "device": "object",
    "fingerprint": "object",
    "case": "object",
    "replicate": "int64",
    "engine": "object",
    "arguments": "object",
    "library": "object",
    "status": "object",
    "detail": "object",
    "started_at": "object",
    "wall_s": "float64",
    "model": "object",
    "catalogue_model": "object",
    "digest": "object",
    "synthetic": "bool",
    "profile": "object",
    "workload": "object",
    "n_prompt": "int64",
    "n_gen": "int64",
    "n_depth": "int64",
    "seed": "int64",
    "switches": "object",
    "sparse_ffn": "bool",
    "sparse_ffn_auto": "bool",
    "sparse_lm_head": "bool",
    "sparse_ffn_effective": "object",
    "lm_head_threshold": "float64",
    "down_layout": "object",
    "requantise_down": "bool",
    "threads_requested": "int64",
    "threads": "int64",
    "cpus": "object",
    "affinity": "object",
    "threads_why": "object",
    "isa_requested": "object",
    "isa": "object",
    "n_ctx": "int64",
    "n_batch": "int64",
    "kv_type": "object",
    "kv_touch": "bool",
    "load_requested": "object",
    "load": "object",
    "populate": "bool",
    "purpose": "object",
    "provenance": "object",
    "usable": "bool",
    "problem": "object",
    "decode_tps": "float64",
    "prefill_tps": "float64",
    "ttft_ms": "float64",
    "tpot_ms": "float64",
    "tpot_p50_ms": "float64",
    "tpot_p95_ms": "float64",
    "tpot_p99_ms": "float64",
    "weight_bytes_per_token": "float64",
    "weight_gb_per_s": "float64",
    "active_share": "float64",
    "lm_head_share": "float64",
    "peak_rss_bytes": "float64",
    "check": "object",
    "output_hash": "object",
    "check_positions": "int64",
    "throttled": "object",
    "throttled_by": "object",
    "joules_per_token": "float64",
    "energy_sensor": "object",
    "gate": "object",
    "gate_detail": "object",
    "gate_waited_s": "float64",
    "weights_repacked": "object",
    "load_ms": "float64",
    "attempt": "int64",
    "read_gb_per_s": "float64",
    "gather_gb_per_s": "float64",
    "core_gb_per_s": "float64",
    "judged_by": "object",
    "disturbed": "bool",
    "off_level": "bool",
    "disturbance": "object",
    "other_cpu_share": "float64",
    "limit_share": "float64",
    "limit_why": "object",
    **limited_columns.COLUMNS,
}

# Records of a run that failed early lack these; within one campaign they are those of its neighbours.
_FILLED = {
    "digest": ["campaign", "device", "engine", "model"],
    "library": ["campaign", "device", "engine"],
    "fingerprint": ["campaign", "device"],
}
_NAMES = frozenset(catalogue.names())
_REPACKED = {True: "yes", False: "no", None: ""}
_PERCENTILES = {"tpot_p50_ms": 0.5, "tpot_p95_ms": 0.95, "tpot_p99_ms": 0.99}


def to_frame(records: Iterable[RunRecord]) -> pd.DataFrame:
    """One row per record in the order given, columns :data:`COLUMNS`. Text that a failed run never reached
    is "", numbers NaN (0 in integer columns). What is disturbed is judged over all of ``records``: give whole
    campaigns."""
    records = list(records)
    verdicts = judge(records)
    rows = [
        own_row(record) | machine_columns(verdict) for record, verdict in zip(records, verdicts, strict=True)
    ]
    speeds = [row["decode_tps"] for row in rows]
    for row, bound in zip(rows, storage_bound.bounds(records, speeds, verdicts), strict=True):
        row.update(bound)
    data = {name: [row[name] for row in rows] for name in COLUMNS}
    return pd.DataFrame({name: pd.Series(data[name], dtype=dtype) for name, dtype in COLUMNS.items()})


def filled(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with what a run that failed early did not come to say, where its campaign says only one."""
    for name, keys in _FILLED.items():
        values = frame[name]
        if not (values == "").any():
            continue
        values = values.copy()
        for _, group in frame.groupby(keys, sort=True, dropna=False):
            known = sorted(set(group[name]) - {""})
            if len(known) == 1:
                values.loc[group.index] = known[0]
        frame = frame.assign(**{name: values})
    return frame


def profile_label(spec: SynthSpec | None, name: str = "") -> str:
    """The set statistics of a synthetic model in words, behind their name; "" for real weights."""
    if spec is None:
        return ""
    parts = []
    if spec.zero_share:
        head, tail = spec.zero_share[:4], spec.zero_share[4:]
        if len(set(spec.zero_share)) == 1:
            text = f"{spec.zero_share[0] / 1000:.2f} in every layer"
        elif tail:
            first = ", ".join(f"{share / 1000:.2f}" for share in head)
            text = f"{first}, then {min(tail) / 1000:.2f} to {max(tail) / 1000:.2f}"
        else:
            text = ", ".join(f"{share / 1000:.2f}" for share in head)
        parts.append(f"ReLU zeros per layer {text}")
    if spec.hot_share:
        parts.append(f"{spec.hot_experts} hot experts take {spec.hot_share / 10:g} % of selections")
    elif spec.n_expert:
        parts.append("routing not skewed")
    if spec.predictor_rank:
        parts.append(f"lm_head predictor keeps {spec.lm_head_keep / 10:g} % of rows")
    text = "; ".join(parts) or "no set statistics"
    return f"profile {name}: {text}" if name else text


def catalogue_model(record: RunRecord) -> str:
    """The catalogue's name of what was measured, "" when it has none. A real file has the name of the entry
    whose shapes and size it has, whatever the file is called. The standard-layout twin counts as its
    original for other engines, which cannot load the original; for our own it is a model of its own."""
    name = record.model.name
    if name.endswith(catalogue.STANDARD_SUFFIX) and record.engine != ENGINE:
        name = name.removesuffix(catalogue.STANDARD_SUFFIX)
    if name in _NAMES:
        return name
    if record.shape is None or record.model.synthetic is not None:
        return ""
    return next((entry.name for entry in catalogue.ENTRIES if _has_shape(record.shape, entry)), "")


def _has_shape(shape: ModelShape, entry: catalogue.Entry) -> bool:
    names = (
        "architecture",
        "n_layer",
        "n_embd",
        "n_head",
        "n_head_kv",
        "head_dim",
        "n_ff",
        "n_expert",
        "n_expert_used",
        "n_vocab",
    )
    if any(getattr(shape, name) != getattr(entry.spec, name) for name in names):
        return False
    return abs(shape.weight_bytes / entry.sizes.weight_bytes - 1) <= SIZE_TOLERANCE


def affinity_label(affinity: Sequence[Sequence[int]]) -> str:
    """Per-thread CPU lists, in short: ``0|1`` for two pinned threads, ``0-3 (all threads)`` when equal."""
    texts = [_cpu_list(cpus) for cpus in affinity]
    if not texts:
        return ""
    if len(set(texts)) == 1 and len(texts) > 1:
        return f"{texts[0]} (all threads)"
    return "|".join(texts)


def _cpu_list(cpus: Sequence[int]) -> str:
    spans: list[list[int]] = []
    for cpu in sorted(set(cpus)):
        if spans and cpu == spans[-1][1] + 1:
            spans[-1][1] = cpu
        else:
            spans.append([cpu, cpu])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)


def own_row(record: RunRecord) -> dict[str, Any]:
    """The columns that a record alone determines; what its campaign decides comes in :func:`to_frame`, and in
    :mod:`stbench.records.record_index` for records that are read once."""
    settings, effective, check = record.settings, record.effective, record.check
    asked = record.workload
    problem = _problem(record)
    usable = record.status == "ok" and not problem
    row: dict[str, Any] = {
        "record_id": record.id,
        "label": record.label,
        "campaign": record.campaign,
        "device": record.device,
        "fingerprint": record.facts.fingerprint if record.facts else "",
        "case": record.case,
        "replicate": record.replicate,
        "engine": record.engine,
        "arguments": _arguments(record.program),
        "library": record.versions.library_sha256 if record.versions else "",
        "status": record.status,
        "detail": record.detail,
        "started_at": record.started_at,
        "wall_s": record.wall_s,
        "model": record.model.name,
        "catalogue_model": catalogue_model(record),
        "digest": record.model.digest,
        "synthetic": record.model.synthetic is not None,
        "profile": profile_label(record.model.synthetic, record.model.profile),
        "workload": workload_label(asked.n_prompt, asked.n_gen, asked.n_depth),
        "n_prompt": record.workload.n_prompt,
        "n_gen": record.workload.n_gen,
        "n_depth": record.workload.n_depth,
        "seed": record.workload.seed,
        "switches": switches_label(
            AUTO_FFN if settings.sparse_ffn and settings.sparse_ffn_auto else settings.sparse_ffn,
            settings.sparse_lm_head,
        ),
        "sparse_ffn": settings.sparse_ffn,
        "sparse_ffn_auto": settings.sparse_ffn_auto,
        "sparse_lm_head": settings.sparse_lm_head,
        "sparse_ffn_effective": effective.sparse_ffn if effective else "",
        "lm_head_threshold": settings.lm_head_threshold,
        "down_layout": effective.down_layout if effective else "",
        "requantise_down": settings.requantise_down,
        "threads_requested": settings.threads,
        "threads": effective.threads if effective else settings.threads,
        "cpus": _cpu_list(settings.cpus),
        "affinity": affinity_label(effective.affinity) if effective else "",
        "threads_why": record.choice.why if record.choice else "",
        "isa_requested": settings.isa,
        "isa": effective.isa if effective else "",
        "n_ctx": settings.n_ctx,
        "n_batch": settings.n_batch,
        "kv_type": settings.kv_type,
        "kv_touch": settings.kv_touch,
        "load_requested": settings.load,
        "load": effective.load if effective else "",
        "populate": settings.populate,
        "weights_repacked": _REPACKED[effective.weights_repacked if effective else None],
        "load_ms": effective.load_ns / 1e6 if effective and effective.load_ns else math.nan,
        "purpose": record.purpose,
        "provenance": record.provenance,
        "usable": usable,
        "problem": problem,
        "peak_rss_bytes": record.memory.peak_rss_bytes if record.memory else math.nan,
        "check": check.verdict if check else "unchecked",
        "output_hash": check.output_hash if check else "",
        "check_positions": check.positions if check else 0,
        "throttled": record.telemetry.throttled if record.telemetry else "unknown",
        "throttled_by": "; ".join(record.telemetry.throttled_by) if record.telemetry else "",
    }
    row.update(_heat_and_energy(record, usable))
    row.update(_speeds(record.samples if usable else None))
    row.update(_shares(record, row["decode_tps"]))
    row.update(_limits(record, row["decode_tps"]))
    row.update(limited_columns.limited_row(record, usable=usable))
    return row


def _arguments(program: Program | None) -> str:
    """All but the program's own path, which is a build's."""
    if program is None:
        return ""
    variables = [f"{name}={value}" for name, value in sorted(program.environment.items())]
    return shlex.join([*variables, *program.command[1:]])


def _problem(record: RunRecord) -> str:
    """Why an "ok" record has no speed all the same; "" when it has one or did not end ok."""
    if record.status != "ok":
        return ""
    if record.check is not None and record.check.verdict == "wrong":
        return "status is ok but the check says wrong output"
    samples = record.samples
    if samples is None:
        return "status is ok but there are no samples"
    if samples.decode_tokens and len(samples.decode_tokens) != len(samples.decode_ns):
        return "decode_ns and decode_tokens differ in length"
    decoded = decoded_tokens(samples)
    if decoded != record.workload.n_gen:
        return f"{decoded} decode samples for n_gen {record.workload.n_gen}"
    if len(samples.prefill_ns) != len(samples.prefill_tokens):
        return "prefill_ns and prefill_tokens differ in length"
    if any(ns <= 0 for ns in [*samples.decode_ns, *samples.prefill_ns]):
        return "a duration is zero or negative"
    if (samples.decode_ns and not decoded) or (samples.prefill_ns and not sum(samples.prefill_tokens)):
        return "durations of no tokens"
    return ""


def _speeds(samples: Samples | None) -> dict[str, float]:
    speeds = dict.fromkeys(("decode_tps", "prefill_tps", "ttft_ms", "tpot_ms", *_PERCENTILES), math.nan)
    if samples is None:
        return speeds
    if samples.prefill_ns:
        speeds["prefill_tps"] = sum(samples.prefill_tokens) * 1e9 / sum(samples.prefill_ns)
        speeds["ttft_ms"] = samples.ttft_ns / 1e6 if samples.ttft_ns else math.nan
    if samples.decode_ns:
        n = decoded_tokens(samples)
        speeds["decode_tps"] = n * 1e9 / sum(samples.decode_ns)
        speeds["tpot_ms"] = sum(samples.decode_ns) / n / 1e6
        if n == len(samples.decode_ns):
            ordered = sorted(samples.decode_ns)
            for name, share in _PERCENTILES.items():
                speeds[name] = ordered[math.ceil(share * n) - 1] / 1e6
    return speeds


def decoded_tokens(samples: Samples) -> int:
    """How many tokens ``decode_ns`` are of."""
    return sum(samples.decode_tokens) if samples.decode_tokens else len(samples.decode_ns)


def _shares(record: RunRecord, decode_tps: float) -> dict[str, float]:
    names = ("weight_bytes_per_token", "weight_gb_per_s", "active_share", "lm_head_share")
    shares = dict.fromkeys(names, math.nan)
    decode: PhaseCounters | None = record.counters.decode if record.counters else None
    if decode is None or decode.tokens <= 0:
        return shares
    shares["weight_bytes_per_token"] = decode.weight_bytes / decode.tokens
    shares["weight_gb_per_s"] = shares["weight_bytes_per_token"] * decode_tps / 1e9
    if decode.neurons_examined > 0:
        shares["active_share"] = decode.neurons_active / decode.neurons_examined
    if record.shape and record.shape.n_vocab > 0:
        shares["lm_head_share"] = decode.lm_head_rows / (decode.tokens * record.shape.n_vocab)
    return shares


def _limits(record: RunRecord, decode_tps: float) -> dict[str, Any]:
    limit = limit_share(record, decode_tps)
    return {
        "attempt": record.attempt,
        **{name: _or_nan(rate) for name, rate in rates_beside(record).items()},
        "judged_by": yardstick(record),
        "other_cpu_share": _or_nan(other_cpu_share(record)),
        "limit_share": _or_nan(limit.share),
        "limit_why": limit.why,
    }


def _heat_and_energy(record: RunRecord, usable: bool) -> dict[str, Any]:
    gate, energy = record.gate, record.energy if usable else None
    return {
        "joules_per_token": energy.joules / energy.tokens if energy and energy.tokens > 0 else math.nan,
        "energy_sensor": energy.sensor if energy else "",
        "gate": gate.outcome if gate else "",
        "gate_detail": gate.detail if gate else "",
        "gate_waited_s": gate.waited_s if gate else math.nan,
    }


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value


def machine_columns(verdict: Verdict) -> dict[str, Any]:
    """Whether the machine was itself, as columns."""
    return {
        "disturbed": verdict.disturbed,
        "off_level": verdict.off_level,
        "disturbance": "; ".join(verdict.reasons),
    }
