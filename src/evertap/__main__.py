"""`python -m evertap`: the command line."""

from evertap.cli.main import main

main()
