"""Records made by hand: plausible, and with every part replaceable."""

from __future__ import annotations

import dataclasses
from typing import Any

from stbench.agent.wire import (
    Check,
    Counters,
    CpuCluster,
    DeviceFacts,
    Effective,
    Memory,
    ModelRef,
    ModelShape,
    PhaseCounters,
    RunRecord,
    Samples,
    Settings,
    Telemetry,
    Versions,
    Workload,
)
from stbench.models import catalogue
from stbench.sweeps.sweep import switches_label, workload_label

MB = 1_000_000
LAYERS = 32


def facts(fingerprint: str = "f00d", **changes: Any) -> DeviceFacts:
    made = DeviceFacts(
        hostname="bench",
        machine="x86_64",
        kernel="6.1.0",
        os="Debian GNU/Linux 12",
        python="3.11.2",
        cpu_model="Example CPU @ 3 GHz",
        n_cpus=2,
        allowed_cpus=[0, 1],
        clusters=[CpuCluster([0, 1], "Example CPU", None, None)],
        features=["avx2", "avx512f"],
        isas=["scalar", "avx2", "avx512vnni"],
        page_bytes=4096,
        memory_bytes=24 * 2**30,
        memory_available_bytes=20 * 2**30,
        swap_bytes=0,
        virtualisation="kvm",
        fingerprint=fingerprint,
    )
    return dataclasses.replace(made, **changes)


def phase(tokens: int, weight_mb: float, active: float, rows: int) -> PhaseCounters:
    examined = LAYERS * 4 * 768 * tokens
    return PhaseCounters(
        tokens=tokens,
        weight_bytes=int(weight_mb * MB) * tokens,
        embedding_bytes=0,
        attention_bytes=0,
        router_bytes=0,
        ffn_bytes=0,
        lm_head_bytes=0,
        kv_bytes_read=0,
        kv_bytes_written=0,
        neurons_examined=examined,
        neurons_active=round(examined * active),
        lm_head_rows=rows * tokens,
        ns_total=1,
        ns_attention=0,
        ns_router=0,
        ns_ffn=0,
        ns_lm_head=0,
        ns_barrier=0,
    )


def shape(spec: Any) -> ModelShape:
    sizes = catalogue.sizes(spec)
    return ModelShape(
        architecture=spec.architecture,
        n_layer=spec.n_layer,
        n_embd=spec.n_embd,
        n_head=spec.n_head,
        n_head_kv=spec.n_head_kv,
        head_dim=spec.head_dim,
        n_ff=spec.n_ff,
        n_expert=spec.n_expert,
        n_expert_used=spec.n_expert_used,
        n_vocab=spec.n_vocab,
        down_layout="transposed" if spec.transposed_down else "none",
        lm_head_predictor_rank=spec.predictor_rank,
        n_params=sizes.params,
        n_params_active=sizes.params_active,
        file_bytes=sizes.weight_bytes + 4096,
        weight_bytes=sizes.weight_bytes,
    )


def record(
    model: str = "smallthinker-4b",
    *,
    tps: float = 30.0,
    ffn: bool = False,
    head: bool = False,
    replicate: int = 0,
    device: str = "local",
    engine: str = "sbr",
    threads: int = 2,
    n_prompt: int = 39,
    n_gen: int = 4,
    campaign: str = "c1",
    status: str = "ok",
    detail: str = "",
    verdict: str = "ok",
    output_hash: str = "0123456789abcdef",
    throttled: str = "no",
    synthetic: bool = True,
    library: str = "ab" * 32,
    fingerprint: str = "f00d",
    minute: int = 0,
    **changes: Any,
) -> RunRecord:
    """An "ok" record of ``tps`` tokens/s; with another status one that never reached its samples."""
    entry = catalogue.lookup(model) if model in catalogue.names() else None
    known = entry.spec if entry else None
    switches = switches_label(ffn, head)
    case = f"{model}/{switches}/t{threads}/{workload_label(n_prompt, n_gen, 0)}"
    reached = status in ("ok", "wrong-output")
    weight_mb = 491.5 - (121 if ffn else 0) - (107 if head else 0)
    made = RunRecord(
        id=f"{campaign}-{device}-{engine}-{case}-{replicate}",
        label=f"{device}:{case}",
        campaign=campaign,
        device=device,
        case=case,
        replicate=replicate,
        engine=engine,
        status=status,
        detail=detail,
        started_at=f"2026-01-02T03:{minute:02d}:{replicate:02d}Z",
        wall_s=3.5,
        model=ModelRef(
            model,
            f"/cache/{model}.gguf",
            "d1" * 32 if reached else "",
            known if synthetic else None,
            entry.profile if entry and synthetic else "",
        ),
        workload=Workload(n_prompt, n_gen, 0, 7),
        settings=Settings(threads=threads, sparse_ffn=ffn, sparse_lm_head=head),
    )
    if reached:
        ns = round(1e9 / tps)
        made = dataclasses.replace(
            made,
            facts=facts(fingerprint),
            shape=shape(known) if known else None,
            effective=Effective(
                threads=threads,
                affinity=[[0], [1]][:threads],
                isa="avx512vnni",
                n_ctx=4096,
                n_batch=64,
                kv_type="f16",
                kv_bytes=128 * MB,
                scratch_bytes=4 * MB,
                sparse_ffn="full" if ffn else "off",
                sparse_lm_head=head,
                down_layout="transposed",
                load="mmap",
            ),
            samples=Samples(
                300 * MB, [300 * MB] if n_prompt else [], [n_prompt] if n_prompt else [], [ns] * n_gen
            ),
            counters=Counters(
                prefill=phase(n_prompt, 900, 1.0, 151936),
                decode=phase(n_gen, weight_mb, 0.294, 15194 if head else 151936),
                layer_neurons_examined=[],
                layer_neurons_active=[],
            ),
            memory=Memory(int(2.41 * 2**30)),
            telemetry=Telemetry([], [], {}, {}, throttled),
            check=Check(verdict, output_hash, 16),
            versions=Versions("0.1.0", {"compiler": "gcc 12"}, library),
        )
    return dataclasses.replace(made, **changes)


def table_4b(n: int = 6, spread: float = 0.01, **common: Any) -> list[RunRecord]:
    """The rows that this version measures, n replicates each; speeds differ by ``spread`` steps."""
    rows = [
        ("smallthinker-4b", True, True, 71.0),
        ("smallthinker-4b", True, False, 54.0),
        ("smallthinker-4b", False, True, 46.0),
        ("smallthinker-4b", False, False, 38.5),
        ("qwen3-0.6b", False, False, 76.0),
        ("qwen3-1.7b", False, False, 28.0),
    ]
    return [
        record(model, ffn=ffn, head=head, tps=tps * (1 + spread * i), replicate=i, **common)
        for i in range(n)
        for model, ffn, head, tps in rows
    ]
