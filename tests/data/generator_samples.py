"""A small invented world, so that tests of the generators need no network; equations in a text."""

import re
from collections.abc import Iterator

from puna.data.geography import Country

SEED = 11


def _country(number: int) -> Country:
    region = ("Africa", "Asia", "Europe", "the Americas")[number % 4]
    return Country(
        name=f"Landia{number}",
        capital=f"Villa{number}",
        region=region,
        subregion=f"Western {region}",
        currencies=(f"Coin{number}",),
        languages=(f"Lang{number}",),
        borders=(f"Landia{(number + 4) % 60}",),
        area_km2=1000.0 + number,
    )


COUNTRIES = tuple(_country(number) for number in range(60))

_CHAIN = re.compile(r"\d+ [-+] \d+(?: = \d+ [-+] \d+)* = \d+")


def equations(text: str) -> Iterator[tuple[int, str, int, int]]:
    """(a, sign, b, what it equals) of each sum or difference, and of the tens' step in a chain."""
    for chain in _CHAIN.findall(text):
        *sums, end = chain.split(" = ")
        for number, each in enumerate(sums):
            a, sign, b = each.split()
            yield int(a), sign, int(b), int(end)
            if number:  # "27 + 45 = 67 + 5": 27 + 40 = 67
                before, _, _ = sums[number - 1].split()
                yield int(before), sign, abs(int(a) - int(before)), int(a)
