"""CUDA on one CPU thread: cuda.h has its words, build.py compiles the kernels against them."""
