"""The network: layers, positions, encoder, masking, masked autoencoder, sizes."""
