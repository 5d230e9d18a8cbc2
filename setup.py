"""Builds the optional C kernel and packages the goldens; everything else is in pyproject.toml."""

from pathlib import Path

from setuptools import Extension, setup

KERNEL = "optrace/trace/_kernel.c"

setup(
    ext_modules=[
        Extension(
            "optrace.trace._kernel",
            sources=[KERNEL],
            depends=sorted(map(str, Path("optrace/trace").glob("_kernel_*.h"))),
            extra_compile_args=["-O3", "-std=c11", "-fno-math-errno", "-ffp-contract=off", "-pthread"],
            extra_link_args=["-pthread"],
            define_macros=[("Py_LIMITED_API", "0x030B0000")],
            py_limited_api=True,
            optional=True,
        )
    ]
    if Path(KERNEL).exists()
    else [],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
