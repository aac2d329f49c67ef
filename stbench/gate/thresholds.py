"""What the gate checks, which way is worse, and from where on a change matters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from stbench.comparison.compare import Floor, Threshold
from stbench.comparison.noise import Noise, floor_of
from stbench.devices.inventory import Device
from stbench.errors import UsageError


@dataclass(frozen=True)
class Metric:
    """A column of the frame. ``part``: the count of the workload without which there is no such number, ""
    for one that every run has. ``default``: the smallest change that matters, a share; ``always``: checked
    where nobody says what to check. ``noise``: the metric of `stbench noise` that speaks for it, "" for
    none."""

    name: str
    text: str
    unit: str
    higher_is_better: bool
    part: str
    default: float
    always: bool
    noise: str


# A first token's time is the prompt's, so prefill's noise is its noise. Peak memory has no noise to speak of:
# allocations repeat to the page, and what differs is how much of a mapped file was touched.
METRICS: Mapping[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("decode_tps", "decode", "tokens/s", True, "n_gen", 0.02, True, "decode_tps"),
        Metric("prefill_tps", "prefill", "tokens/s", True, "n_prompt", 0.05, False, "prefill_tps"),
        Metric("ttft_ms", "first token", "ms", False, "n_prompt", 0.05, False, "prefill_tps"),
        Metric("tpot_p95_ms", "95 % of tokens", "ms", False, "n_gen", 0.05, False, "decode_tps"),
        Metric("peak_rss_bytes", "peak memory", "bytes", False, "", 0.02, True, ""),
        Metric("joules_per_token", "energy", "J/token", False, "n_gen", 0.05, False, "decode_tps"),
    )
}


@dataclass(frozen=True)
class Thresholds:
    """``of_device``: device -> metric -> share, None where that metric is not checked; ``chosen``: metrics
    that the command line named, in place of all others."""

    of_device: Mapping[str, Mapping[str, float | None]]
    chosen: tuple[str, ...] = ()

    def metrics(self, device: str) -> list[Metric]:
        """What is checked on a device."""
        said = self.of_device.get(device, {})
        if self.chosen:
            return [METRICS[name] for name in self.chosen]
        return [m for m in METRICS.values() if (said[m.name] is not None if m.name in said else m.always)]

    def share(self, device: str, metric: str) -> float:
        """The smallest change of a metric that matters on a device, before its noise is asked."""
        return self.of_device.get(device, {}).get(metric) or METRICS[metric].default

    def threshold(self, metric: str) -> Threshold:
        """For :func:`stbench.comparison.compare.judge`: never below the device's own noise."""

        def matters(row: pd.Series[Any], noise: float) -> float:
            return max(self.share(str(row["device"]), metric), noise)

        return matters


def thresholds_of(devices: Sequence[Device], chosen: Sequence[str] = ()) -> Thresholds:
    """Of the ``check:`` of devices.yaml and ``--metric``. Raises :class:`UsageError` for unknown metrics."""
    unknown = [name for name in chosen if name not in METRICS]
    if unknown:
        raise UsageError(f"--metric {', '.join(unknown)}: expected some of {', '.join(METRICS)}")
    shares = {
        device.name: {
            name: None if percent is None else percent / 100 for name, percent in device.check.items()
        }
        for device in devices
    }
    return Thresholds(shares, tuple(dict.fromkeys(chosen)))


def floor_for(stored: Sequence[Noise], metric: str) -> Floor:
    """The noise floor of a metric's cases."""
    return floor_of(stored, METRICS[metric].noise)
