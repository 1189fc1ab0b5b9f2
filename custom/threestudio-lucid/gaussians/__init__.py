"""The Gaussian cloud: parameters in a fixed arena, density control, files.

cloud      parameters and activations                         (torch module, no registry)
density    clone, split, prune, opacity reset                 (plain functions on explicit tensors)
ply        the 3DGS file layout
geometry   the class registered with threestudio (the only file that imports it)
"""
