"""Human bodies: what avatars start from, and what their ControlNet is shown.

body         vertices, faces, parts and charts of a posed body
parts        DensePose's 24 parts
mannequin    the bundled one: a skeleton, its poses, solids on it
smpl         SMPL and SMPL-X, from the user's own files
files        a body mesh, OBJ or GLB
sources      "mannequin", "smplx:FOLDER", "file:body.glb" -> a body
zbuffer      which triangle a pixel sees
maps         parts, depth, normals as pictures
initializer  the class registered with threestudio (the only file that imports it)
"""

from .body import Body
from .maps import MAPS, draw_maps
from .sources import make_body

__all__ = ["MAPS", "Body", "draw_maps", "make_body"]
