"""Memory limits and caches asked what-if: simulation, routing traces, the smallest limit."""
