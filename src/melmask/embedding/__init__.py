"""From a trained model and sound to embeddings."""
