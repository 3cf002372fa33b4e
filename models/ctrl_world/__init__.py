"""Ctrl-World (arXiv 2510.10125): a video diffusion model driven by poses, as published."""
