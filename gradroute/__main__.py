"""`python -m gradroute` is the `gradroute` command."""

import sys

from gradroute.cli import main

sys.exit(main())
