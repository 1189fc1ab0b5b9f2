"""The fixed numbers of 3D Gaussian splatting (Kerbl et al. 2023), shared by every back end written here.

The compiled kernels hold copies, see COMPILED_IN in kernels.py.
"""

ALPHA_MAX = 0.99  # a single Gaussian never hides everything behind it
ALPHA_MIN = 1.0 / 255.0  # a fainter contribution is skipped: it could not change an 8-bit image
TRANSMITTANCE_MIN = 1e-4  # compositing stops before the Gaussian that would take the transmittance below this
FOV_MARGIN = 0.3  # the Jacobian is evaluated at most this share of half the image outside of it

# Real spherical harmonics, degree by degree, with the signs of the 3DGS files.
SH_C0 = 0.28209479177387814
SH_C1 = 0.4886025119029199
SH_C2 = (
    1.0925484305920792,
    -1.0925484305920792,
    0.31539156525252005,
    -1.0925484305920792,
    0.5462742152960396,
)
SH_C3 = (
    -0.5900435899266435,
    2.890611442640554,
    -0.4570457994644658,
    0.3731763325901154,
    -0.4570457994644658,
    1.445305721320277,
    -0.5900435899266435,
)
SH_DEGREE_MAX = 3
