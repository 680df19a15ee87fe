"""Comparisons with the PyTorch reference implementations: recorded (`make test`) and live (`make parity`)."""
