"""Prices of tokens, and what tokens cost.

Amounts are exact decimals, in the currency of the prices, which is nowhere named.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated

from pydantic import Field, PlainSerializer

from inferfleet.schemas.result import Usage
from inferfleet.schemas.wire_model import GivenModel

Amount = Annotated[Decimal, PlainSerializer(lambda amount: plain(amount), return_type=str, when_used="json")]
"""An amount of money. As JSON a string without an exponent, such as ``"0.00012"``."""

Price = Annotated[Amount, Field(ge=0, le=10**6, decimal_places=6)]
"""The price of a million tokens, to the millionth of a unit of the currency."""


class Prices(GivenModel):
    """What a million tokens cost: of a prompt, of its part that was cached, and of an answer.

    Without ``cached_input``, cached tokens cost what the others of the prompt cost.
    """

    input: Price
    cached_input: Price | None = None
    output: Price

    def cost_of(self, usage: Usage) -> Decimal:
        """Return what these tokens cost, not rounded."""
        cached = min(usage.cached_tokens, usage.prompt_tokens)
        cached_price = self.input if self.cached_input is None else self.cached_input
        per_million = (
            (usage.prompt_tokens - cached) * self.input
            + cached * cached_price
            + usage.completion_tokens * self.output
        )
        return per_million.scaleb(-6)


def plain(amount: Decimal) -> str:
    """Write an amount without an exponent and without zeros at its end."""
    text = f"{amount:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
