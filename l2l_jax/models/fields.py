"""Types of the fields of models, which a config and the cards of saved models are checked by."""

from typing import Annotated

import pydantic

Size = Annotated[int, pydantic.Field(ge=1)]
Count = Annotated[int, pydantic.Field(ge=0)]
Number = Annotated[float, pydantic.Field(allow_inf_nan=False)]
Positive = Annotated[float, pydantic.Field(gt=0, allow_inf_nan=False)]
Sizes = Annotated[tuple[Size, ...], pydantic.Field(min_length=1)]
Numbers = Annotated[tuple[Number, ...], pydantic.Field(min_length=1)]
Positives = Annotated[tuple[Positive, ...], pydantic.Field(min_length=1)]
