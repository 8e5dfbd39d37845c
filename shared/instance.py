"""The process that serves requests, as Cloud Run ends it: SIGTERM, ten seconds to finish what is under way, SIGKILL."""

import signal


def ending() -> bool:
    """Whether SIGTERM has come, so that nothing is to be begun that a later delivery can do as well.

    The signal belongs to the server: gunicorn's worker has set its own handler, after our modules were imported and in
    another thread than ours. But the handler is a method of the worker, and the worker says whether it goes on. Where
    there is no such worker: False.
    """
    worker = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    return getattr(worker, "alive", True) is False
