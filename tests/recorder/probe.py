"""A program that prints all it can see of the Python it runs in, then ends in the way that its first argument names."""

import builtins
import os
import pickle
import signal
import sys
import threading
import warnings


class Picklable:
    def __init__(self, number):
        self.number = number


class OddExit(SystemExit):
    pass


def seen_by_worker(number):
    return number * number, __name__, sys.path, sys.argv, "sitecustomize" in sys.modules


def look():
    spec = __spec__ and (__spec__.name, __spec__.origin, __spec__.parent, type(__spec__.loader).__name__)
    print("argv", [os.fsencode(arg) for arg in sys.argv], [os.fsencode(arg) for arg in sys.orig_argv])
    print("main", __name__, __file__, __package__, spec, type(__loader__).__name__, __doc__)
    print("path", sys.path, sorted(sys.path_importer_cache))
    print("flags", sys.flags, sys.warnoptions, sys._xoptions, warnings.filters)
    print("builtins", sorted(vars(builtins)), __builtins__ is builtins, sorted(globals()))
    print("modules", sorted(sys.modules), sys.modules["__main__"].__dict__ is globals())
    print("executable", sys.executable, sys.prefix, sys.exec_prefix, sys.stdin and sys.stdin.encoding)
    print("hooks", sys.excepthook, sys.displayhook, sys.gettrace(), sys.getprofile(), threading.active_count())
    # (SIGPIPE and SIGXFSZ are Python's own)
    print("signals", [(int(s), signal.getsignal(s)) for s in signal.valid_signals()])
    copy = pickle.loads(pickle.dumps(Picklable(7)))
    print("pickle", type(copy) is Picklable, copy.number, Picklable.__module__, pickle.dumps(Picklable(7)))
    print("cwd", os.getcwd(), sorted(key for key in os.environ if not key.startswith(("OPTRACE_", "PYTHONPATH"))))


def pools():
    import multiprocessing

    for method in ("fork", "spawn", "forkserver"):
        with multiprocessing.get_context(method).Pool(2) as pool:
            print(method, pool.map(seen_by_worker, range(4)))


def fail(depth):
    if depth == 0:
        raise ValueError("on purpose, with a non-ASCII é")
    fail(depth - 1)


def end(how):
    if how == "exit-3":
        sys.exit(3)
    if how == "exit-text":
        sys.exit("some text")
    if how == "odd-exit":
        raise OddExit(5)
    if how == "exception":
        fail(2)
    if how == "chained":
        try:
            fail(1)
        except ValueError as error:
            raise RuntimeError("while handling") from error
    if how == "import-error":
        import there_is_no_such_module  # noqa: F401
    if how == "interrupt":
        raise KeyboardInterrupt
    if how == "_exit-4":
        sys.stdout.flush()
        os._exit(4)
    if how.startswith("SIG"):
        sys.stdout.flush()
        os.kill(os.getpid(), getattr(signal, how))
    if how == "stdin":
        print("stdin", sys.stdin.buffer.read())
    if how == "pools":
        pools()


if __name__ == "__main__":
    if "torch" in sys.argv:
        import torch  # noqa: F401
    if sys.stdout is not None:
        look()
    end(sys.argv[1] if len(sys.argv) > 1 else "normal")
