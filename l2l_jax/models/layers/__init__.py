"""Layers and helpers that model families share."""
