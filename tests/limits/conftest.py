"""What the tests of memory-limited inference share."""

from __future__ import annotations

from tests.host.conftest import sandbox as sandbox
