"""``campaign.json`` after a part of a campaign was resumed: it still knows the rest."""

from __future__ import annotations

import json
from typing import Any

from tests.host.fleet import Fleet, sweep

BY_DEVICE = ("to_make", "peak_disk_bytes", "free_bytes")


def described(fleet: Fleet) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(fleet.path.with_name("campaign.json").read_text())
    return found


def test_a_resumed_part_does_not_forget_the_rest(fleet: Fleet) -> None:
    fleet.boards(3)
    assert fleet.run("sweep", sweep(fleet, 1), "--campaign", "c", b2={"dies_after": 1})[0] == 3
    before, planned = described(fleet), fleet.planned()
    again = ("sweep", "--resume", "--campaign", "c")

    code, _, err = fleet.run(*again, "--device", "b2")
    assert code == 0, err
    after = described(fleet)
    assert fleet.planned() == planned
    assert set(after["devices"]) == {"b1", "b2", "b3"}
    assert after["plan"]["cases"] == before["plan"]["cases"]
    assert sorted(after["plan"]["boards_side_by_side"]) == ["b1", "b2", "b3"]
    assert after["plan"]["expected_s"] == before["plan"]["expected_s"]
    for key in BY_DEVICE:
        assert set(after["plan"][key]) == {"b1", "b2", "b3"}, key
    # All of it again: nothing is left, and nothing is doubled.
    assert fleet.run(*again)[0] == 0
    assert fleet.planned() == planned
    assert len(fleet.records()) == len({record.id for record in fleet.records()}) == 6


def test_a_board_that_is_away_when_others_are_resumed_stays_known(fleet: Fleet) -> None:
    fleet.boards(2)
    assert fleet.run("sweep", sweep(fleet, 1), "--campaign", "c")[0] == 0
    planned = fleet.planned()
    code, _, err = fleet.run("sweep", "--resume", "--campaign", "c", b1={"unreachable": True})
    assert code == 3, err
    assert fleet.planned() == planned
    assert set(described(fleet)["devices"]) == {"b1", "b2"}
    assert set(described(fleet)["unreachable"]) == {"b1"}
    assert fleet.run("sweep", "--resume", "--campaign", "c", "--device", "b2")[0] == 0
    assert set(described(fleet)["unreachable"]) == {"b1"}, "nobody asked it"
    assert fleet.run("sweep", "--resume", "--campaign", "c")[0] == 0
    assert described(fleet)["unreachable"] == {}


def test_a_campaign_of_chosen_devices_stays_theirs(fleet: Fleet) -> None:
    """``--resume`` alone, as the page on boards says, measures on no device that nobody asked for."""
    fleet.boards(3, local=True)
    path = sweep(fleet, 1)
    assert fleet.run("sweep", path, "--campaign", "c", "--device", "b[12]", b2={"dies_after": 1})[0] == 3
    code, _, err = fleet.run("sweep", "--resume", "--campaign", "c", "--device", "b1")
    assert (code, "is of --device" in err) == (0, False), err
    code, _, err = fleet.run("sweep", "--resume", "--campaign", "c")
    assert code == 0, err
    assert "c is of --device 'b[12]'; --device '*' goes on with all enabled devices" in err
    assert {name: len(ids) for name, ids in fleet.ran().items()} == {"b1": 2, "b2": 2}
    assert fleet.run("sweep", "--resume", "--campaign", "c", "--device", "b*")[0] == 0
    assert set(fleet.ran()) == {"b1", "b2", "b3"}


def test_a_chosen_device_that_is_disabled_is_named(fleet: Fleet) -> None:
    path = sweep(fleet, 1)
    entries = "  local: {}\n  b1: {connector: ssh, host: b1.lan, enabled: false}\n"
    fleet.sandbox.write("devices.yaml", f"devices:\n{entries}")
    code, _, err = fleet.run("sweep", path, "--device", "b1")
    assert (code, "try: set enabled: true for b1 in devices.yaml" in err) == (2, True), err
