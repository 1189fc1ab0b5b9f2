"""`python -m toybox.grade`."""

import sys

from toybox.grade.commands import main

sys.exit(main())
