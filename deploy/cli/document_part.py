"""What every document that commands print is made of: frozen, with keys in camelCase, and moments as RFC 3339."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from pydantic import BaseModel, ConfigDict, PlainSerializer
from pydantic.alias_generators import to_camel

from deploy.cli.amounts import moment
from deploy.document import Json

Moment: TypeAlias = Annotated[float, PlainSerializer(moment, return_type=str)]
"""Seconds since 1970, from which tables count ages; a document has the time itself."""


class Part(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, frozen=True)

    @property
    def document(self) -> Json:
        dumped: Json = self.model_dump(mode="json", by_alias=True)
        return dumped
