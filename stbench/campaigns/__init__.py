"""Plan -> records: deploy, run, follow, store what comes back."""
