"""Optional third-party packages: imported where they are used, with a remedy when missing.

This is the only way a module of dxdt may import something inside a function.
"""

import importlib
from types import ModuleType


def require(name: str, extra: str) -> ModuleType:
    """Import the package ``name``, or say which extra of dxdt brings it.

    Args:
        name: dotted name of the module to import.
        extra: the extra of dxdt that installs it.

    Raises:
        ImportError: the package is not installed; the message is one sentence with the
            command to run. A package that is there but fails to import raises its own error.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        package = name.partition(".")[0]
        if error.name is None or error.name.partition(".")[0] != package:
            raise
        message = f"{name} is needed here and not installed: run pip install 'dxdt[{extra}]'."
        raise ImportError(message, name=package) from error
