"""Evaluation: inpainting test images and measuring the results."""
