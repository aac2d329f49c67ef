"""A run's timeline: where a token's time goes."""
