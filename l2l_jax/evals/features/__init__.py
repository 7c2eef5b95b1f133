"""Feature networks for images."""
