"""Checkpoints: reading, importing, exporting and downloading."""
