"""Phases of an experiment, from the original model to the report."""
