"""For tools that still call setup.py; pyproject.toml describes the package."""

from setuptools import setup

setup()
