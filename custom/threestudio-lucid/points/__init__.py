"""Coloured point clouds to start from: simple shapes and files."""

from .cloud import PointCloud, mean_squared_neighbour_distance
from .files import read_points
from .shapes import SHAPES, ball, box
from .sources import load_points, split_source

__all__ = [
    "SHAPES",
    "PointCloud",
    "ball",
    "box",
    "load_points",
    "mean_squared_neighbour_distance",
    "read_points",
    "split_source",
]
