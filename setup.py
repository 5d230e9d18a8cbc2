"""Builds the optional C kernel and packages the goldens; everything else is in pyproject.toml."""

import shutil
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_py import build_py

KERNEL = "optrace/trace/_kernel.c"
# the kernel calls Python some hundred times a step: jumps through a table of their own each cost a line of cold code
DIRECT_CALLS = ["-fno-plt"] if sys.platform == "linux" else []


class BuildWithGoldens(build_py):
    """Also puts the checkout's golden/ into the package, as optrace/_golden; an editable install reads it in place."""

    def run(self):
        """Build as usual, then copy the goldens."""
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib) / "optrace" / "_golden"
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree("golden", target)


setup(
    cmdclass={"build_py": BuildWithGoldens},
    ext_modules=[
        Extension(
            "optrace.trace._kernel",
            sources=[KERNEL],
            depends=sorted(map(str, Path("optrace/trace").glob("_kernel_*.h"))),
            extra_compile_args=["-O3", "-std=c11", "-fno-math-errno", "-ffp-contract=off", "-pthread", *DIRECT_CALLS],
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
