"""Beyond N(0, I): directions in latent space and learned priors."""
