"""The published grid as data: spelling, order, values."""

from __future__ import annotations

import pytest

from stbench.tables.published import published_device, published_table, published_tables, published_threads


def test_titles_headers_and_rows_are_as_published() -> None:
    big, small = published_tables()
    assert (big.title, small.title) == ("SmallThinker 21B", "SmallThinker 4B")
    assert [d.header for d in big.devices] == ["i9 14900", "1+13 8ge4", "rk3588 (16G)", "Raspberry PI 5"]
    assert [d.header for d in small.devices] == [
        "i9 14900",
        "1+13 8gen4",
        "rk3588 (16G)",
        "rk3576",
        "Raspberry PI 5",
        "RDK X5",
        "rk3566",
    ]
    assert [row.label for row in big.rows] == [
        "SmallThinker 21B+sparse",
        "SmallThinker 21B+sparse +limited memory",
        "Qwen3 30B A3B",
        "Qwen3 30B A3Blimited memory",
        "Gemma 3n E2B",
        "Gemma 3n E4B",
    ]
    assert [row.label for row in small.rows] == [
        "SmallThinker 4B+sparse ffn +sparse lm_head",
        "SmallThinker 4B+sparse ffn +sparse lm_head+limited memory",
        "Qwen3 0.6B",
        "Qwen3 1.7B",
        "Qwen3 1.7B limited memory",
        "Gemma3n E2B",
    ]
    assert [row.memory for row in small.rows] == [
        "2.24",
        "limit 1G",
        "0.6",
        "1.3",
        "limit 1G",
        "1G, theoretically",
    ]


def test_every_cell_has_a_value_or_a_dash() -> None:
    for table in published_tables():
        for row in table.rows:
            assert list(row.speeds) == [device.key for device in table.devices]
    dashes = [
        (row.label, device)
        for table in published_tables()
        for row in table.rows
        for device, speed in row.speeds.items()
        if speed is None
    ]
    assert len(dashes) == 5
    assert ("Qwen3 1.7B limited memory", "raspberry-pi-5") in dashes


def test_values_spot_checked_against_the_publication() -> None:
    small = published_table("4B")
    assert [row.speeds["i9-14900"] for row in small.rows] == [108.17, 29.99, 148.56, 62.24, 2.66, 36.88]
    assert [row.speeds["rk3566"] for row in small.rows] == [6.33, 0.74, 9.76, 4.15, 0.11, 2.45]
    big = published_table("21B")
    assert [row.speeds["snapdragon-8-elite"] for row in big.rows] == [23.03, 15.5, 20.18, 0.18, 27.06, 16.58]


def test_switches_follow_the_configuration() -> None:
    rows = {row.label: row for table in published_tables() for row in table.rows}
    full = rows["SmallThinker 4B+sparse ffn +sparse lm_head"]
    assert (full.model, full.sparse_ffn, full.sparse_lm_head, full.limited) == (
        "smallthinker-4b",
        True,
        True,
        False,
    )
    big = rows["SmallThinker 21B+sparse"]
    assert (big.sparse_ffn, big.sparse_lm_head) == (True, False)
    assert rows["Qwen3 30B A3Blimited memory"].limited
    assert not rows["Qwen3 0.6B"].sparse_ffn


def test_thread_rule() -> None:
    assert published_threads("i9-14900") == 4
    assert published_threads("snapdragon-8-elite") == 4
    assert published_threads("raspberry-pi-5") is None
    assert published_threads("local") is None


def test_unknown_names() -> None:
    with pytest.raises(KeyError):
        published_table("7B")
    with pytest.raises(KeyError):
        published_device("pi")
