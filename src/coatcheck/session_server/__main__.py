"""``python -m coatcheck.session_server``."""

import sys

from coatcheck.session_server.server import main

if __name__ == "__main__":
    sys.exit(main())
