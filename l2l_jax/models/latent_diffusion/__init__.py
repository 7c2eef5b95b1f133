"""The family "latent_diffusion": Stable Diffusion inpainting with the layout of diffusers."""
