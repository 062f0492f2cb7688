"""Judging a frozen representation: label tables, held-out splits and the probes' scores."""
