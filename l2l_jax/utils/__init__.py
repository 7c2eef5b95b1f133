"""Utilities for process setup, multi-process runs, files, signals and text."""
