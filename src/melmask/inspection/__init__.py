"""Numbers about the inside of a model: masks, reconstructions, attention, features, and sound from log-mels."""
