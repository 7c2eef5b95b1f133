"""Evaluation: inpainting of test images and metrics of the results."""
