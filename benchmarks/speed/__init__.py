"""Throughput, first call, memory and size of every variant and backend beside the published PyTorch code."""
