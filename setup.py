"""Where the packages live: the extension's folder has the name threestudio's loader wants, the package one Python wants.

``custom/threestudio-lucid`` is imported as ``threestudio_lucid``.  The host under ``host/`` is deliberately not
installed: a package called ``threestudio`` would shadow a real one.  `launch.py` and the tests find it by path.
"""

from setuptools import find_packages, setup

EXTENSION = "custom/threestudio-lucid"
PACKAGE = "threestudio_lucid"

setup(
    package_dir={PACKAGE: EXTENSION, "toybox": "toybox"},
    packages=[
        PACKAGE,
        *(f"{PACKAGE}.{name}" for name in find_packages(EXTENSION)),
        "toybox",
        *(f"toybox.{name}" for name in find_packages("toybox")),
    ],
    package_data={
        PACKAGE: ["priors/**/*", "configs/*.yaml"],
        "toybox": ["**/*.safetensors", "**/*.json"],
    },
)
