"""What every document that commands print is made of: frozen, with keys in camelCase."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel

from deploy.document import Json


class Part(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, frozen=True)

    @property
    def document(self) -> Json:
        dumped: Json = self.model_dump(mode="json", by_alias=True)
        return dumped
