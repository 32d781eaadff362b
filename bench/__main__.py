"""``python -m fastvae.bench`` is ``fastvae bench``."""

import sys

from fastvae.cli import main

if __name__ == "__main__":
    main(["bench", *sys.argv[1:]])
