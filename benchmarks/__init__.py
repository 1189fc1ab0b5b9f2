"""Where the time goes: each module prints a table and writes JSON, e.g. `python -m benchmarks.rasterizer`."""

import importlib.util
import sys
from pathlib import Path

if importlib.util.find_spec("threestudio") is None:  # as launch.py does
    sys.path.append(str(Path(__file__).resolve().parents[1] / "host"))
