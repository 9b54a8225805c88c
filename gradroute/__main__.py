"""`python -m gradroute` is the `gradroute` command."""

import sys

from gradroute.cli.main import main

sys.exit(main())
