"""stbench: on-device LLM benchmarking with proof for every number."""

__version__ = "0.1.0"
