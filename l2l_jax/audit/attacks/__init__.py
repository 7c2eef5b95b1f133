"""Built-in attacks. Importing this package registers the attacks of all its modules in alphabetical order."""

import importlib
import pkgutil

for module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{module.name}")
