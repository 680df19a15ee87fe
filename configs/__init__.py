"""Experiment configs: each defines ``get_config()`` and imports nothing of ours."""
