"""Training and inference on this machine; runs in processes of its own and is the only importer of torch."""
