"""The only package that imports Ray: Algorithm 1, placement, pools, training runs."""
