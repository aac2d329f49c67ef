"""One published cell measured again: which one is meant, what was stated about it, and what came of it."""
