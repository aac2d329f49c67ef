"""What ``campaign.json`` says of a campaign: its sweep, its plan, its devices.

Whoever resumes a part of a campaign, with ``--device`` or while a board is away, plans that part alone; what
was known of the other devices stays.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import stbench
from stbench.sweeps.plan import Plan
from stbench.sweeps.prepare import Prepared
from stbench.sweeps.sweep import Sweep

# Parts of a described plan, by what they say it of; the other parts are totals.
_BY_LABEL = ("cases", "searches")
_BY_DEVICE = ("to_make", "bundles_to_make", "peak_disk_bytes", "free_bytes")


def description(
    sweep: Sweep,
    plan: Plan,
    devices: Sequence[Prepared],
    unreachable: Mapping[str, str],
    stored: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """JSON-ready. ``unreachable``: devices that were left out, and why; ``stored``: the description of the
    campaign that is resumed."""
    now: dict[str, Any] = {
        "stbench": stbench.__version__,
        "sweep": dataclasses.asdict(sweep),
        "plan": plan.describe(),
        "devices": {
            device.target.device.name: {
                "library_sha256": device.agent.deployment.library_sha256,
                "agent_sha256": device.agent.deployment.agent_sha256,
                "fingerprint": device.target.facts.fingerprint,
            }
            for device in devices
        },
        "unreachable": dict(unreachable),
    }
    if stored is None:
        return now
    rest = {name: known for name, known in _dict(stored, "devices").items() if name not in now["devices"]}
    away = {name: why for name, why in _dict(stored, "unreachable").items() if name not in now["devices"]}
    return {
        **now,
        "plan": _with_rest(now["plan"], _dict(stored, "plan"), rest) if rest else now["plan"],
        "devices": {**rest, **now["devices"]},
        "unreachable": {**away, **now["unreachable"]},
    }


def _with_rest(plan: dict[str, Any], stored: dict[str, Any], rest: Mapping[str, Any]) -> dict[str, Any]:
    """A part's plan with what the stored one has of the devices ``rest``; totals are those of the stored one,
    which is of more."""
    both = {**plan, **stored}
    for key in _BY_LABEL:
        kept = {label: v for label, v in _dict(stored, key).items() if label.partition(":")[0] in rest}
        both[key] = {**kept, **plan[key]}
    for key in _BY_DEVICE:
        both[key] = {**{name: v for name, v in _dict(stored, key).items() if name in rest}, **plan[key]}
    kept_jobs = {job for case in both["cases"].values() for job in case["jobs"]} - set(plan["order"])
    both["order"] = [job for job in stored.get("order", ()) if job in kept_jobs] + plan["order"]
    for key in ("boards_side_by_side", "notes"):
        both[key] = list(dict.fromkeys([*stored.get(key, ()), *plan[key]]))
    return both


def _dict(values: Mapping[str, Any], key: str) -> dict[str, Any]:
    found = values.get(key)
    return found if isinstance(found, dict) else {}
