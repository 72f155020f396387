"""The command line as a module: `python -m dxdt`."""

from dxdt.lab.cli import main

main()
