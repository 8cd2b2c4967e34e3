"""Loads the compiled library; a failure becomes one error that says what to do."""

from __future__ import annotations

import torch  # noqa: F401  (libtorch must be in the process before _C)

try:
    from oskt_ext import _C
except ImportError as error:
    raise ImportError(
        "oskt_ext: the compiled library must be built for this Python, got "
        f"'{error}'. Run `pip install --no-build-isolation -e .` in the repository."
    ) from error


def build_info() -> dict[str, str]:
    """Say what was built.

    Returns:
        version, source_hash (SHA-256 of csrc/, first 16 digits), torch and compiler of the build,
        cuda (toolkit version, empty for a CPU build), cuda_architectures, cuda_reason (why the
        CUDA kernels are in or not).

    Example:
        >>> sorted(build_info())[0]
        'compiler'
    """
    return dict(_C.build_info())
