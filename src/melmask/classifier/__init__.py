"""Classifiers: fine-tuning them, and predicting with them."""
