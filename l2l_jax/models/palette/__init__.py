"""The family "palette": diffusion models for inpainting."""
