"""Directions in latent space, and learned priors: mixture, flow matching, transformer."""
