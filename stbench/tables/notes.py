"""What stands under a table: the devices, what was selected and why, the synthetic profiles, what failed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from stbench.agent.wire import DeviceFacts, RunRecord
from stbench.devices.engine_names import is_program
from stbench.tables import published
from stbench.tables.cells import is_wrong
from stbench.tables.merging import Taken
from stbench.tables.table import ELSEWISE, TIMES
from stbench.wording import clean, count

# Behind a case whose disturbed replicates were all run again, to no avail.
AGAIN = "*"

# Device name and fingerprint -> what the board said of itself.
Facts = Mapping[tuple[str, str], DeviceFacts]


def device_facts(records: Iterable[RunRecord]) -> Facts:
    """The newest facts of every board."""
    newest: dict[tuple[str, str], tuple[str, str, DeviceFacts]] = {}
    for record in records:
        if record.facts is not None:
            key = (record.device, record.facts.fingerprint)
            found = (record.started_at, record.id, record.facts)
            newest[key] = max(newest.get(key, found), found, key=lambda item: item[:2])
    return {key: found[2] for key, found in newest.items()}


def selection(
    name: str,
    device: str,
    engine: str,
    condition: Mapping[str, Any],
    filled: Mapping[str, Taken],
    n_other_condition: int,
) -> dict[str, Any]:
    """What a measured column holds, JSON-ready. ``filled`` maps a row's key to what its cell shows."""
    every = [found.rows for found in filled.values()]
    # What the column's own sentence says is of rows under the column's own condition.
    rows = [found.rows for found in filled.values() if not found.elsewise] or every
    threads = {key: sorted({int(n) for n in found.rows["threads"]}) for key, found in filled.items()}
    return {
        "column": name,
        "device": device,
        "engine": engine,
        "condition": dict(condition),
        "campaigns": sorted({str(c) for frame in rows for c in frame["campaign"]}),
        "isa": sorted({str(isa) for frame in rows for isa in frame["isa"]} - {""}),
        "load": sorted({str(load) for frame in rows for load in frame["load"]} - {""}),
        "threads": threads,
        "affinity": sorted({str(a) for frame in rows for a in frame["affinity"]} - {""}),
        "threads_auto": any((frame["threads_why"] != "").any() for frame in every),
        "weights_repacked": sorted({str(a) for frame in rows for a in frame["weights_repacked"]} - {""}),
        "records": sum(len(frame) for frame in every),
        "records_of_other_conditions": n_other_condition,
        "elsewise": {
            key: f"{found.elsewise}; campaign {_names(found.rows['campaign'])}"
            for key, found in filled.items()
            if found.elsewise
        },
        "duplicates": {key: found.others for key, found in filled.items() if found.others},
    }


def _names(column: pd.Series[Any]) -> str:
    return clean(", ".join(sorted(set(map(str, column)))), 80) or "-"


def device_sentences(selected: Sequence[Mapping[str, Any]], facts: Facts) -> list[str]:
    """What each device is, once for all its columns."""
    boards = {(str(chosen["device"]), str(chosen["condition"]["fingerprint"])) for chosen in selected}
    return [
        device_sentence(clean(device, 60), facts.get((device, print_))) for device, print_ in sorted(boards)
    ]


def proofs(
    selected: Sequence[Mapping[str, Any]],
    labels: Mapping[str, str],
    shown: pd.DataFrame,
    profiles: Sequence[str],
) -> list[str]:
    """The fine print of a table whose measured cells rest on the records ``shown``; ``profiles`` is
    :func:`synthetic_sentences` of these, ``labels`` the rows' labels by key."""
    lines = [line for chosen in selected for line in duplicate_sentences(chosen, labels, contradictory=False)]
    lines += profiles
    cases = _cases(shown)
    lines += disturbances(cases)
    for label, group in cases:
        lines += heat_sentences(label, group) + energy_sentences(label, group)
    return lines + auto_sentences(shown) + limit_sentences(shown)


def failure_sentences(shown: pd.DataFrame) -> list[str]:
    """What did not end well among the records of a table."""
    return [line for label, group in _cases(shown) for line in failures(label, group)]


def _cases(shown: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    names = ["device", "engine", "model", "switches", "threads", "label"]
    return [(clean(str(group["label"].iloc[0]), 120), group) for _, group in shown.groupby(names, sort=True)]


def auto_sentences(shown: pd.DataFrame) -> list[str]:
    """What ``-t auto`` chose and why, a sentence per device, model and engine setting."""
    lines = []
    chosen = shown[shown["threads_why"] != ""]
    for (device, engine, model, switches, why), _ in chosen.groupby(
        ["device", "engine", "model", "switches", "threads_why"], sort=True
    ):
        how = engine if is_program(str(engine)) else switches
        what = f"{clean(str(device), 40)}: {clean(str(model), 60)}/{clean(str(how), 40)}"
        lines.append(f"{what}: -t auto chose {clean(str(why), 900)}.")
    return lines


def disturbances(cases: Sequence[tuple[str, pd.DataFrame]]) -> list[str]:
    """What disturbed the usable replicates of cases, in one sentence for each engine of a device and each
    fate of such replicates; none where nothing did. ``cases``: labels and records."""
    found: dict[tuple[str, str, str], list[tuple[str, str, str]]] = {}
    for label, replicates in cases:
        usable = replicates[replicates["usable"]]
        hit = usable[usable["disturbed"]]
        if not len(hit):
            continue
        fate = "left out" if len(hit) < len(usable) else "shown for want of others"
        reasons = Counter(clean(str(reason), 160) for reason in hit["disturbance"])
        why = min(reasons, key=lambda text: (-reasons[text], text))
        again = "; all of them were run again, in vain" if (hit["attempt"] > 0).all() else ""
        n = f"{len(hit)} of {len(usable)}"
        example = f"for example: {why}" if len(reasons) > 1 else why
        alone = f"{label}: {n} {_replicates(len(usable))} disturbed and {fate} ({example}){again}."
        short = f"{label.partition(':')[2] or label} {n}{AGAIN if again else ''}"
        key = (str(replicates["device"].iloc[0]), str(replicates["engine"].iloc[0]), fate)
        found.setdefault(key, []).append((alone, short, why))
    lines = []
    for (device, engine, fate), parts in found.items():
        if len(parts) == 1:
            lines.append(parts[0][0])
            continue
        said = ", ".join(short for _, short, _ in parts)
        star = f"; {AGAIN}: all of them were run again, in vain" if AGAIN in said else ""
        why = Counter(why for _, _, why in parts).most_common(1)[0][0]
        lines.append(
            f"{clean(device, 40)} ({clean(engine, 20)}): disturbed replicates, {fate}: {said}; "
            f"for example: {why}{star}."
        )
    return lines


def _replicates(n: int) -> str:
    return "replicate" if n == 1 else "replicates"


def heat_sentences(label: str, replicates: pd.DataFrame) -> list[str]:
    """Which usable replicates of a case throttled, or started before the device was cool, and what showed
    it."""
    usable = replicates[replicates["usable"]]
    lines = []
    hot = usable[usable["throttled_by"] != ""]
    warm = usable[usable["gate"] == "timeout"]
    for found, column, what in (
        (hot, "throttled_by", "throttled"),
        (warm, "gate_detail", f"started warm, after the longest wait ({warm['gate_waited_s'].max():.0f} s)"),
    ):
        if len(found):
            why = clean(min(str(text) for text in found[column]), 240)
            lines.append(f"{label}: {len(found)} of {count(len(usable), 'replicate')} {what} ({why}).")
    return lines


def energy_sentences(label: str, replicates: pd.DataFrame) -> list[str]:
    """Joules per token of a case, where a sensor measured them."""
    measured = replicates[replicates["usable"] & replicates["joules_per_token"].notna()]
    lines: list[str] = []
    if is_wrong(replicates):
        return lines
    for sensor, group in measured.groupby("energy_sensor", sort=True):
        joules = group["joules_per_token"]
        spread = f", {joules.min():.3g} to {joules.max():.3g}" if len(joules) > 1 else ""
        lines.append(
            f"{label}: {joules.median():.3g} J/token while decoding ({clean(str(sensor), 60)}, median of "
            f"{count(len(joules), 'replicate')}{spread}; nothing subtracted for an idle device)."
        )
    return lines


def limit_sentences(shown: pd.DataFrame) -> list[str]:
    """What the percentages of the limit are, where there are any, and why some cells have none."""
    if not shown["read_gb_per_s"].notna().any():
        return []
    lines = [
        "% of limit: bytes of weights per token and tokens/s against the read bandwidth probed right before "
        "and after the same runs; rows picked by sparsity are counted at the rate of random rows, which "
        "neighbouring active rows may exceed."
    ]
    without = shown[shown["usable"] & (shown["limit_why"] != "")]
    for (device, model, why), _ in without.groupby(["device", "model", "limit_why"], sort=True):
        lines.append(f"{clean(str(device), 40)}: {clean(str(model), 60)}: no % of limit: {clean(str(why))}.")
    return lines


def failures(label: str, replicates: pd.DataFrame) -> list[str]:
    """One sentence per way in which replicates did not end well."""
    bad = replicates[~replicates["usable"]]
    lines = []
    for status, group in bad.groupby("status", sort=True):
        kind = "unusable" if status == "ok" else clean(str(status), 40)
        details = Counter(
            clean(str(problem or detail), 160)
            for problem, detail in zip(group["problem"], group["detail"], strict=True)
        )
        detail = min(details, key=lambda text: (-details[text], text))
        lines.append(
            f"{label}: {len(group)} of {count(len(replicates), 'replicate')}: {kind}"
            + (f" ({detail})" if detail else "")
        )
    return lines


def device_sentence(name: str, facts: DeviceFacts | None) -> str:
    """What a device is, in one line."""
    if facts is None:
        return f"{name}: no device facts recorded."
    parts = [clean(facts.board or facts.cpu_model or facts.machine, 80)]
    if facts.board and facts.cpu_model:
        parts.append(clean(facts.cpu_model, 80))
    clusters = ", ".join(
        f"{len(cluster.cpus)} {TIMES} {clean(cluster.model, 40)}" for cluster in facts.clusters
    )
    cpus = (
        f"{len(facts.allowed_cpus)} of {facts.n_cpus} CPUs"
        if len(facts.allowed_cpus) != facts.n_cpus
        else (f"{facts.n_cpus} CPUs")
    )
    parts.append(f"{cpus} ({clusters})" if len(facts.clusters) > 1 else cpus)
    governors = sorted({cluster.governor for cluster in facts.clusters if cluster.governor})
    if governors:
        parts.append("governor " + clean(", ".join(governors), 60))
    parts.append(f"{facts.memory_bytes / 2**30:.1f} GiB memory")
    if facts.storage:
        parts.append(f"storage {clean(facts.storage, 60)}")
    if facts.virtualisation:
        parts.append(f"virtual machine ({clean(facts.virtualisation, 40)})")
    parts.append(f"{clean(facts.os, 60)}, kernel {clean(facts.kernel, 60)}, {clean(facts.machine, 20)}")
    return f"{name}: " + "; ".join(parts) + "."


def selection_sentences(chosen: Mapping[str, Any], labels: Mapping[str, str]) -> list[str]:
    """Under which conditions a column was measured, and what of it was not. ``labels``: of rows, by key."""
    name = clean(str(chosen["column"]), 60)
    condition = chosen["condition"]
    isa = "/".join(chosen["isa"]) or "unknown"
    forced = "" if condition["isa_requested"] == "auto" else " (forced)"
    touched = ", allocated and touched" if condition["kv_touch"] else ", not touched"
    lines = [
        f"{name}: workload {condition['workload']} ({_tokens(chosen)}), "
        f"context {condition['n_ctx']} with {condition['kv_type']} KV cache{touched}, "
        f"batch {condition['n_batch']}, instruction set {isa}{forced}, "
        f"weights by {clean('/'.join(chosen['load']) or 'unknown', 40)}{_repacked(chosen)}; "
        f"{_threads(chosen)}; "
        f"build {str(condition['library'])[:12] or 'unknown'}; "
        f"campaign {clean(', '.join(chosen['campaigns']), 80) or '-'}."
    ]
    rows_by_words: dict[str, list[str]] = {}
    for key, words in chosen["elsewise"].items():
        rows_by_words.setdefault(words, []).append(labels[key])
    for words, rows in rows_by_words.items():
        lines.append(f"{name}: {ELSEWISE} in {_quoted(rows)}: {words}.")
    lines += duplicate_sentences(chosen, labels, contradictory=True)
    if chosen["records_of_other_conditions"]:
        lines.append(
            f"{name}: {count(chosen['records_of_other_conditions'], 'record')} of other workloads, settings, "
            "builds or boards left out of this column and listed apart: it shows the condition that fills "
            "most rows."
        )
    return lines


def duplicate_sentences(
    chosen: Mapping[str, Any], labels: Mapping[str, str], *, contradictory: bool
) -> list[str]:
    """Which of several measurements of a row a column shows: of those that contradict each other, or of the
    others."""
    name = clean(str(chosen["column"]), 60)
    return [
        f"{name}: {_quoted([labels[key]])} is {words}."
        for key, words in chosen["duplicates"].items()
        if ("contradicts" in words or "computed other outputs" in words) == contradictory
    ]


def _quoted(labels: Sequence[str]) -> str:
    return ", ".join(f'"{label}"' for label in labels)


def _tokens(chosen: Mapping[str, Any]) -> str:
    if is_program(chosen["engine"]):
        return f"tokens that {clean(chosen['engine'], 40)} chooses, timed by itself"
    return f"teacher-forced stream, seed {chosen['condition']['seed']}"


def _repacked(chosen: Mapping[str, Any]) -> str:
    said = {"yes": ", repacked into anonymous memory", "no": ", not repacked"}
    return (
        "".join(said[word] for word in chosen["weights_repacked"][:1]) if is_program(chosen["engine"]) else ""
    )


def _threads(chosen: Mapping[str, Any]) -> str:
    counts = {tuple(threads) for threads in chosen["threads"].values()}
    shown = ", ".join("/".join(map(str, threads)) for threads in sorted(counts)) or "none"
    where = "in every cell" if len(counts) == 1 else "by cell"
    rule = published.published_threads(chosen["device"])
    why = "the fastest number measured, as published for most devices"
    if rule is not None:
        used = {number for threads in counts for number in threads}
        why = f"{rule} as published" if used <= {rule} else _unmeasured(rule, rule in used)
    if chosen["threads_auto"]:
        why = "chosen by -t auto, see below"
    affinity = clean("; ".join(chosen["affinity"]), 80)
    return f"threads {shown} {where} ({why}), affinity {affinity or 'unknown'}"


def _unmeasured(rule: int, somewhere: bool) -> str:
    """Why cells have other than the published number of threads, all of them or not ``somewhere``."""
    if somewhere:
        return f"{rule} as published; where these were not measured, the fastest number that was"
    return f"{rule} are published and were not measured; the fastest number that was"


def synthetic_sentences(shown: pd.DataFrame) -> list[str]:
    """The profile of every synthetic model, with what was measured of it; models of which the same is to be
    said share a sentence."""
    models: dict[str, list[str]] = {}
    synthetic = shown[shown["synthetic"]]
    for (model, profile), group in synthetic.groupby(["model", "profile"], sort=True):
        parts = [clean(str(profile), 240)]
        sparse = group[group["usable"]]
        active = sparse.loc[sparse["sparse_ffn"], "active_share"].dropna()
        if len(active):
            parts.append(f"measured zeros {100 * (1 - float(active.median())):.1f} %")
        kept = sparse.loc[sparse["sparse_lm_head"], "lm_head_share"].dropna()
        if len(kept):
            parts.append(f"measured lm_head rows {100 * float(kept.median()):.1f} %")
        models.setdefault("; ".join(parts), []).append(clean(str(model), 60))
    return [
        f"{', '.join(names)} {'is' if len(names) == 1 else 'are'} synthetic: {said}."
        for said, names in models.items()
    ]
