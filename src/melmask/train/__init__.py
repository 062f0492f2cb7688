"""Pre-training: the loop, its optimizer, its resumable state, its metrics."""
