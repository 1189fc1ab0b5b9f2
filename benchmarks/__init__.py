"""Where the time goes: each module prints a table and writes JSON, e.g. `python -m benchmarks.rasterizer`."""
