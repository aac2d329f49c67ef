"""The gate of a build: a committed baseline (``baseline_file``, ``taking``), what is checked and from where a
change matters (``thresholds``), one side held against the other (``judging``), the second measurement that a
suspicion needs (``confirming``, ``rounds``), and what a pull request shows of it (``summary``, ``outputs``).
"""
