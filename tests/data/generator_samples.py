"""A small invented world, so that tests of the generators need no network."""

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
