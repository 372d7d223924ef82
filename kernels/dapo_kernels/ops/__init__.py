"""The Triton kernels, one operation a file: the kernel, its block sizes, and the function that launches it.

Block sizes are fixed, not autotuned: the same inputs give the same bits. Their speed on an H200 is not measured.
"""
