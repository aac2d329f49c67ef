"""One set of results against another: intervals, tests, verdicts."""
