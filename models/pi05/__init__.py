"""The pi0.5 policy in plain PyTorch, compatible with openpi's checkpoints and data transforms."""
