"""Convolution and max-pooling: for each device the fastest exact algorithm."""
