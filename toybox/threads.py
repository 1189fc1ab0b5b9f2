"""Import before torch: lets idle OpenMP threads sleep instead of spinning.

Where other programs share the cores, a thread that spins at a barrier takes the time that the thread it waits
for needs: training beside two busy processes was five times slower with libgomp's default. On an idle machine
training, whose operators are large, takes the same time; small ones would take longer (see `launch.py`).
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "0")
