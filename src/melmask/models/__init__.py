"""The network: layers, positions, encoder, decoder, sizes."""
