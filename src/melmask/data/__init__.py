"""Stores of log-mels: writing, reading, drawing crops."""
