"""Sounds that melmask makes itself."""
