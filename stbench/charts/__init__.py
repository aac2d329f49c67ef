"""Records -> figures, without I/O: one module per story, all in one style. The same records give the same
bytes.

``drawable(records, theme)`` has all figures of a set of records; ``svg_bytes`` and ``png_bytes`` make files
of them.
"""

from stbench.charts.gallery import KINDS as KINDS
from stbench.charts.gallery import absent_sentence as absent_sentence
from stbench.charts.gallery import drawable as drawable
from stbench.charts.gallery import failure_sentence as failure_sentence
from stbench.charts.kinds import Drawn as Drawn
from stbench.charts.kinds import Kind as Kind
from stbench.charts.kinds import Request as Request
from stbench.charts.kinds import file_stem as file_stem
from stbench.charts.results import Results as Results
from stbench.charts.results import results_of as results_of
from stbench.charts.style import THEMES as THEMES
from stbench.charts.style import png_bytes as png_bytes
from stbench.charts.style import svg_bytes as svg_bytes
