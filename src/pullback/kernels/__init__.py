"""Compiled inner loops (numba on the CPU, Triton on CUDA), each beside its plain-torch reference."""
