"""The pytest plugin: ``def test_decode(stbench): stbench("model.gguf", n_gen=64)`` gates on tokens/s.

A run of another suite pays for this file and nothing else: the fixture is imported when a test asks for it,
and what measures is a process of its own (docs/ci.md).
"""

from __future__ import annotations

import pytest

FIXTURE = "stbench"


def pytest_configure(config: pytest.Config) -> None:
    """The fixture as pytest-benchmark's own, or one that says that this is missing."""
    if config.pluginmanager.hasplugin("benchmark"):
        from stbench.pytest_plugin import with_benchmark as fixtures
    else:
        from stbench.pytest_plugin import without_benchmark as fixtures  # type: ignore[no-redef]
    config.pluginmanager.register(fixtures, "stbench-fixture")


def pytest_itemcollected(item: pytest.Item) -> None:
    """Gives a test that uses the fixture the clock that goes by tokens; its own marker's words stay."""
    if FIXTURE in getattr(item, "fixturenames", ()) and item.config.pluginmanager.hasplugin("benchmark"):
        from stbench.pytest_plugin.gate import Clock

        own = item.get_closest_marker("benchmark")
        words = dict(own.kwargs) if own is not None else {}
        item.add_marker(pytest.mark.benchmark(**{**words, "timer": Clock.of(item).timer()}), append=False)
