"""What can go wrong with a board, what stbench does about it, and the lines that do it: data.

Each fault names a test and a *sabotage*: text that is taken out of the program, after which that test fails.
``python -m tests.boards.sabotages`` tries them; docs/faults.md is the same list for people.
"""

from __future__ import annotations

from tests.boards import faults_of_boards, faults_of_links

FAULTS = (*faults_of_links.FAULTS, *faults_of_boards.FAULTS)
