"""`python -m subprune_fx.cli` is `subprune-compile`."""

from __future__ import annotations

import sys

from subprune_fx.cli.main import main

sys.exit(main())
