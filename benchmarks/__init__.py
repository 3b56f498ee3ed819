"""Timings (``perf``), studies of the method (``studies``) and their figures (``results``).

``python -m benchmarks.perf.NAME`` in a checkout, which need not be installed: its folders are put on the path here.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"

sys.path[:0] = [str(ROOT / folder) for folder in ("training", "export")]
