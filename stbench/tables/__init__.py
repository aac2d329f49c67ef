"""Rows -> cells -> tables in the published shape, charts and files."""
