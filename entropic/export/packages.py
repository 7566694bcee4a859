"""The packages that an export needs, and what to install where one is not there."""

import importlib
from typing import Any, Literal

from entropic.errors import SettingsError

Package = Literal["pandas", "polars", "xarray"]


def needed(package: Package, what: str | None = None) -> Any:
    """The package, imported: by a store before it reads anything, so that the error comes first.

    Args:
        package: The package.
        what: What needs it; by default, the method that is called after it.

    Returns:
        The module.

    Raises:
        SettingsError: It is not installed; names the extra.
    """
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as missing:
        # What it needs itself, and does not find, is another fault, with a message of its own.
        if missing.name != package:
            raise
        raise SettingsError(
            f"{what or f'to_{package}()'} needs {package}, which is not installed:"
            f" pip install 'entropic[{package}]'"
        ) from None
