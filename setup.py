"""Builds the C++ extension; everything else about the package is in pyproject.toml."""

from pybind11.setup_helpers import Pybind11Extension, build_ext
from setuptools import setup

setup(
    ext_modules=[
        Pybind11Extension(
            "megatron_lm_zh.data._indices",
            ["csrc/indices.cpp"],
            cxx_std=17,
            extra_compile_args=["-O3", "-Wall"],
        )
    ],
    cmdclass={"build_ext": build_ext},
)
