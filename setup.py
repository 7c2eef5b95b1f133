"""Packages of the wheel: those of l2l_jax, and the folder configs as l2l_jax.configs."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["l2l_jax", "l2l_jax.*"]), "l2l_jax.configs"],
    package_dir={"l2l_jax.configs": "configs"},
)
