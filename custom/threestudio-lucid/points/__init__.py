"""Coloured point clouds to start from: simple shapes and files."""

from .cloud import PointCloud, mean_squared_neighbour_distance
from .files import read_points
from .shapes import SHAPES, ball, box

__all__ = ["SHAPES", "PointCloud", "ball", "box", "mean_squared_neighbour_distance", "read_points"]
