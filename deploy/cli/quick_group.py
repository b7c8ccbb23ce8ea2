"""Groups of commands whose help comes at once.

Typer loads pydantic, which takes longer than all the rest of a help, for the value of each flag that is not given and
has no default; a flag that is off by default needs none.
"""

from __future__ import annotations

from typing import Any

import typer.core


class QuickGroup(typer.core.TyperGroup):
    def get_params(self, ctx: Any) -> list[Any]:
        params: list[Any] = super().get_params(ctx)
        for param in params:
            if getattr(param, "is_flag", False) and param.default is None:
                param.default = False
        return params
