"""``python -m dapo_fast``, so that torchrun can start the command line."""

import sys

from dapo_fast.cli import main

sys.exit(main())
