"""Convolution and max-pooling, with the fastest exact algorithm for each backend."""
