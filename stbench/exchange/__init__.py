"""Records to other programs' formats and back: what leaves (:mod:`.selection`), how it is written, and what
comes in (:mod:`.llama_import`); names taken out by :mod:`.anonymised`."""
