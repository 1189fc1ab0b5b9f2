"""Where the packages live.

`custom/threestudio-lucid` has the name that threestudio's loader takes, and is imported as
`threestudio_lucid`. The host under `host/` is deliberately not installed: a package called `threestudio`
would shadow a real one. `launch.py` and the tests find it by path.
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
        PACKAGE: ["priors/**/*"],
        "toybox": ["weights/**/*"],
    },
)
