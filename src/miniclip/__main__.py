"""`python -m miniclip` is the command `miniclip`."""

import sys

from miniclip.cli import main

sys.exit(main())
