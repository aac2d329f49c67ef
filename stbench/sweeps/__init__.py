"""Axes -> cases -> plan; nothing is measured yet."""
