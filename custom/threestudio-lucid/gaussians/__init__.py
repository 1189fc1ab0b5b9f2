"""The Gaussian cloud: parameters in a fixed arena, density control, files.

cloud      parameters and activations                         (torch module, no registry)
density    clone, split, prune, opacity reset                 (plain functions on explicit tensors)
ply        the 3DGS file layout
volume     the cloud as a density on a grid                   (Numba)
surface    a closed, coloured triangle mesh of it
geometry   the class registered with threestudio (the only file that imports it)
"""
