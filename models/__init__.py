"""The architectures and what they share. Single-device PyTorch: no cluster, no ZeRO, no data pipeline in here."""
