"""Models as files that run without torch, and the proof that they still say the same.

`from dino_core import export` means the function. Python, however, binds this package to that name
as soon as one of its modules is imported, so the package can be called like the function.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dino_core.export.api import ExportReport


class _CallablePackage(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> ExportReport:
        from dino_core.export.api import export

        return export(*args, **kwargs)


sys.modules[__name__].__class__ = _CallablePackage
