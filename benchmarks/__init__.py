"""Where the time goes: each module prints a table and writes JSON, e.g. `python -m benchmarks.rasterizer`.

They find the host and wait for threads as launch.py does.
"""

import importlib.util
import sys
from pathlib import Path

from launch import spin_briefly

spin_briefly()
if importlib.util.find_spec("threestudio") is None:
    sys.path.append(str(Path(__file__).resolve().parents[1] / "host"))
