"""Numbers as text, in the prompt and in the answer."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass
from pydantic.functional_validators import model_validator

from fastdrive_node.validation import STRICT


@dataclass(frozen=True, config=STRICT)
class NumberFormat:
    """A decimal number's form.

    With ``integer_digits`` the form has a fixed width: the sign is always written, integer digits are padded with zeros
    (``+03.52``, ``-00.01``), so that every number has the same number of tokens. With 0 it is plain (``3.50``,
    ``-0.01``). Style ``shortest`` is how Python writes a float that was rounded to ``decimals``: ``3.5``, ``0.0``.
    """

    decimals: Annotated[int, Field(ge=0, le=6)] = 2
    integer_digits: Annotated[int, Field(ge=0, le=6)] = 0
    style: Literal["fixed", "shortest"] = "fixed"

    @model_validator(mode="after")
    def _shortest_has_one_form(self) -> NumberFormat:
        if self.style == "shortest" and (self.integer_digits or not 1 <= self.decimals <= 4):  # Python writes 1e-05
            raise ValueError("style: shortest takes 1 to 4 decimals and integer_digits 0")
        return self

    @property
    def width(self) -> int:
        """Characters of a fixed-width number; 0 for the plain form."""
        return self.integer_digits + self.decimals + 1 + bool(self.decimals) if self.integer_digits else 0

    @property
    def limit(self) -> float:
        """Numbers are below this in magnitude."""
        return 10.0**self.integer_digits if self.integer_digits else math.inf

    @property
    def pattern(self) -> str:
        """Regular expression (ASCII digits only) of exactly the texts that ``write`` gives."""
        if self.style == "shortest":
            return rf"(?!-0\.0(?![0-9]))-?(?:0|[1-9][0-9]{{0,5}})\.(?:0|[0-9]{{0,{self.decimals - 1}}}[1-9])"
        fraction = rf"\.[0-9]{{{self.decimals}}}" if self.decimals else ""
        if self.integer_digits:
            return rf"[+-][0-9]{{{self.integer_digits}}}{fraction}"
        return rf"-?(?:0|[1-9][0-9]{{0,5}}){fraction}"

    def write(self, value: float) -> str:
        """The number's text; never a negative zero.

        Raises:
            ValueError: NaN, infinite, or too large for the form.
        """
        if not math.isfinite(value):
            raise ValueError(f"{value} is not a finite number")
        rounded = round(float(value), self.decimals) + 0.0  # + 0.0 turns -0.0 into 0.0
        if abs(rounded) >= min(self.limit, 1e6):
            raise ValueError(f"{value} does not fit {self.example()}")
        if self.style == "shortest":
            return repr(rounded)
        if not self.integer_digits:
            return f"{rounded:.{self.decimals}f}"
        return f"{rounded:+0{self.width}.{self.decimals}f}"

    def unknown(self, mark: str) -> str:
        """The text of a number that is not known: as long as a known one where the width is fixed."""
        return mark * max(self.width, 1)

    def example(self) -> str:
        digits = "0" * max(self.integer_digits, 1)
        fraction = "." + "0" * (1 if self.style == "shortest" else self.decimals) if self.decimals else ""
        return f"'{'+' if self.integer_digits else ''}{digits}{fraction}'"
