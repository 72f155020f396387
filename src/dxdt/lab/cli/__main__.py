"""The command line as a module, for launchers: `python -m dxdt.lab.cli`."""

from dxdt.lab.cli import main

main()
