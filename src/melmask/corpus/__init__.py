"""From sound files to the training crops: the store of log-mels."""
