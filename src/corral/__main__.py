"""`python -m corral` is the program `corral`."""

from corral.cli import main

main()
