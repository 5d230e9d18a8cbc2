"""Wait, in every Python below `optrace record`, for torch to be imported, and start the recorder then.

Python's `site` imports a module of this name at start-up. This one leaves no trace of itself: it takes its folder off
`sys.path`, leaves one finder on `sys.meta_path`, and ends by importing the environment's own `sitecustomize` under
the same name, so that what is there, or the ImportError that says nothing is, is what `site` sees. It imports nothing
that is not loaded already, and stays within the syntax of Python 3.6, because any Python may start below `record`.
"""

import os
import sys


class _TorchFinder:
    """Finds `torch` as the other finders do, and has the recorder started once its import is complete."""

    def __init__(self, package: str) -> None:
        self.package = package

    def find_spec(self, name: str, path: object = None, target: object = None) -> object:
        if name != "torch":
            return None
        finders: list[object] = [finder for finder in sys.meta_path]
        for finder in finders:
            find_spec = getattr(finder, "find_spec", None)
            spec = find_spec(name, path, target) if find_spec and finder is not self else None
            if spec is not None:
                self._start_after(spec.loader)
                return spec
        return None

    def _start_after(self, loader: object) -> None:
        """Make `loader.exec_module` run `torch` and then the recorder, adding no frame to a traceback from either.

        The two calls are the items of an iterator that `next` runs through, all of it C: an exception, or Ctrl-C, in
        the middle of `import torch` prints what it prints without us. Both items are None, so `next` reaches the end
        and returns its default, the module.
        """
        from functools import partial
        from itertools import chain

        def start(name: str) -> None:
            del loader.exec_module  # type: ignore[attr-defined]
            finders: list[object] = sys.meta_path  # type: ignore[assignment]
            if self in finders:
                finders.remove(self)
                _start(self.package)

        execute = loader.exec_module  # type: ignore[attr-defined]
        calls = chain(map(execute, map(sys.modules.get, ("torch",))), map(start, ("torch",)))
        try:
            loader.exec_module = partial(next, filter(None, calls))  # type: ignore[attr-defined]
        except AttributeError:
            _say("the loader of torch, " + type(loader).__name__ + ", cannot be observed")


def _start(package: str) -> None:
    """Start recording with the optrace in `package`, whatever else `sys.path` may call so."""
    if sys.version_info < (3, 11):  # noqa: UP036  (whatever Python the program starts)
        _say("this is Python " + sys.version.split()[0] + " (" + sys.executable + "); optrace needs 3.11 or newer")
        return
    try:
        if "optrace" not in sys.modules:
            from importlib.util import module_from_spec, spec_from_file_location

            spec = spec_from_file_location(
                "optrace", os.path.join(package, "__init__.py"), submodule_search_locations=[package]
            )
            assert spec is not None and spec.loader is not None
            sys.modules["optrace"] = module_from_spec(spec)
            spec.loader.exec_module(sys.modules["optrace"])
        from optrace.recorder.attach import begin
    except Exception as error:
        _say(type(error).__name__ + ": " + str(error) + " (" + sys.executable + ")")
        return
    begin()


def _say(reason: str) -> None:
    if sys.stderr is not None:
        sys.stderr.write("optrace: not recording: " + reason + "\n")


if __name__ == "sitecustomize":
    _folder = os.path.dirname(__file__)
    sys.path[:] = [entry for entry in sys.path if entry != _folder]
    sys.path_importer_cache.pop(_folder, None)
    if "OPTRACE_SETTINGS" in os.environ:
        sys.meta_path.insert(0, _TorchFinder(os.path.dirname(os.path.dirname(_folder))))  # type: ignore[arg-type]
    del sys.modules["sitecustomize"]
    import sitecustomize  # type: ignore[import-not-found]  # noqa: F401
