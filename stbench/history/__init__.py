"""Speeds over many campaigns: which points there are of a case (``points``), and where they changed
(``changes``)."""
