"""Native code: the runtime for every machine, and llama.cpp beside it."""
