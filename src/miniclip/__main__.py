"""Entry point of `python -m miniclip`."""

import sys

from miniclip.cli import main

sys.exit(main())
