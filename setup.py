"""What pyproject.toml cannot say: the recipes lie beside the package and ship within it."""

from setuptools import find_namespace_packages, setup

setup(
    packages=[*find_namespace_packages(include=["puna*"]), "puna.recipes"],
    package_dir={"puna.recipes": "recipes"},
)
