"""Coloured point clouds to start from.

cloud        what a cloud is; densifying, turning, fitting
shapes       ball, sphere, box, torus
files        what PLY files hold          npz     NumPy archives          meshes   OBJ, GLB, PLY with faces
pointe       text to points               shap_e  text to points, through diffusers
sources      "KIND:VALUE", and files by their ending
initializers the classes registered with threestudio (the only file that imports it)
"""

from .cloud import PointCloud, mean_squared_neighbour_distance
from .files import read_points
from .shapes import SHAPES, ball, box, sphere, torus
from .sources import read_file, split_source

__all__ = [
    "SHAPES",
    "PointCloud",
    "ball",
    "box",
    "mean_squared_neighbour_distance",
    "read_file",
    "read_points",
    "sphere",
    "split_source",
    "torus",
]
