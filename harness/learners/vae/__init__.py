"""The variational autoencoder: images from a normal latent."""
