"""Routings in a run: the one that it replays, and the one that it chose (docs/routing.md)."""

import array
import hashlib
from typing import Any, Optional, Sequence

from . import routing, sbr
from .routing import Routing
from .wire import RoutingTrace, Settings


def loaded(settings: Settings, info: Any) -> Optional[Routing]:
    """The trace that a job replays, fitted to the model of ``info`` (an ``sbr_model_info``); None: none.

    Raises ValueError when it is damaged, another file than was planned, or cannot be fitted, and OSError."""
    if not settings.routing:
        return None
    if not info.n_expert:
        raise ValueError("a routing cannot be replayed on a model without experts")
    digest = _sha256(settings.routing)
    if settings.routing_digest and digest != settings.routing_digest:
        raise ValueError(
            "%s has the digest %s..., the job asks for %s..."
            % (settings.routing, digest[:12], settings.routing_digest[:12])
        )
    return routing.read(settings.routing).fit_to(info.n_layer, info.n_expert, info.n_expert_used)


def shifted(trace: Routing, tokens: int) -> Routing:
    """The trace beginning ``tokens`` earlier: its token 0 comes after so many of its last ones. Repeated from
    its end to its beginning, as a replay is."""
    row = trace.n_layer * trace.n_expert_used
    start = (-tokens % trace.n_tokens) * row
    experts = trace.experts[start:] + trace.experts[:start]
    return Routing(
        trace.n_layer,
        trace.n_expert,
        trace.n_expert_used,
        experts,
        trace.model,
        trace.model_digest,
        trace.source,
    )


def recorded(session: sbr.Session, info: Any, digest: str) -> Optional[Routing]:
    """What a session chose since its counters were last set to 0; None when that is nothing."""
    experts = array.array("H")
    experts.frombytes(bytes(session.routing()))
    if not experts:
        return None
    name = info.name.decode("utf-8", "replace")
    return Routing(info.n_layer, info.n_expert, info.n_expert_used, experts, name, digest)


def kept(path: str, parts: Sequence[Optional[Routing]], source: str) -> Optional[RoutingTrace]:
    """Writes the parts of one run, in their order, as one file; None when there are none. Raises OSError."""
    found = [part for part in parts if part is not None]
    if not found:
        return None
    first = found[0]
    experts = array.array("H")
    for part in found:
        experts.extend(part.experts)
    whole = Routing(
        first.n_layer,
        first.n_expert,
        first.n_expert_used,
        experts,
        first.model[: routing.MAX_TEXT],
        first.model_digest,
        source[: routing.MAX_TEXT],
    )
    return RoutingTrace(path, routing.write(path, whole), whole.n_tokens)


def _sha256(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()
