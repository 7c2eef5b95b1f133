"""The family "latent_diffusion": Stable Diffusion inpainting in the layout of diffusers."""
