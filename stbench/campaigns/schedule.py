"""Who measures beside whom: boards side by side, the devices of this machine in turn after them.

A board's worker computes here: it sends jobs, checks records and stores them. That would disturb what is
measured on this machine, so its own devices wait until the boards have ended.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from stbench.devices.inventory import Device

# Names that a sentence lists before it says how many more there are.
_NAMED = 6


def boards_of(devices: Iterable[Device]) -> tuple[str, ...]:
    """The names of devices that are not this machine, in their order."""
    return tuple(device.name for device in devices if device.connector != "local")


def elapsed_s(seconds: Mapping[str, float], boards: Collection[str]) -> float:
    """From every device's seconds those of the whole: the longest of the boards, then the local devices one
    after the other."""
    local = sum(value for device, value in seconds.items() if device not in boards)
    return max((value for device, value in seconds.items() if device in boards), default=0.0) + local


def sentence(devices: Sequence[str], boards: Collection[str]) -> str:
    """The order, for people; "" where all devices are local: they take turns, as ever."""
    far = [device for device in devices if device in boards]
    near = [device for device in devices if device not in boards]
    if not far:
        return ""
    if len(far) == 1:
        text = f"the board {far[0]} has a worker of its own"
    else:
        text = f"{len(far)} boards are measured side by side: {named(far)}"
    if near:
        text += f"; then, so that nothing disturbs this machine, its own devices in turn: {named(near)}"
    return text


def named(names: Sequence[str]) -> str:
    """A list of names that does not fill the screen."""
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def bound_sentence(reruns: Mapping[str, int]) -> str:
    """``9 (--max-reruns)``, and of several devices what each may have."""
    bounds = sorted(set(reruns.values()))
    if len(reruns) < 2:
        return f"{sum(bounds)} (--max-reruns)"
    each = f"{bounds[0]}" if len(bounds) == 1 else f"{bounds[0]} to {bounds[-1]}"
    return f"{sum(reruns.values())} (--max-reruns: {each} of each device)"
