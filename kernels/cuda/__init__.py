"""The CUDA engine: kernels compiled at first use by NVRTC through CuPy."""
