"""Evaluation of models on tasks in HEAR's layout, and the making of such tasks."""
