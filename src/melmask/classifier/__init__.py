"""Fine-tuned classifiers: training and use."""
