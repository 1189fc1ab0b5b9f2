"""`launch.py`, once our system is registered."""

import importlib.util
import sys

from toybox.ceiling.run import LAUNCH

spec = importlib.util.spec_from_file_location("launch", LAUNCH)
launch = importlib.util.module_from_spec(spec)
spec.loader.exec_module(launch)
launch.spin_briefly()
if launch.find_real_threestudio() is None:
    sys.path.append(str(launch.HOST))
import toybox.ceiling.system  # noqa: E402, F401 - registers it, which needs a threestudio

sys.exit(launch.main())
