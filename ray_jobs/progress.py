"""How far long work is: a bar on a terminal, else a line now and then."""

import sys
import time

LINE_SECONDS = 10  # between progress lines where stderr is no terminal
BAR = 30  # characters


class Progress:
    """Samples done: a bar on a terminal, else a line now and then."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.started = self.shown = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        left = (now - self.started) * (total - done) / max(done, 1)
        text = f"{self.name}: {done}/{total} samples, {left / 60:.1f} min left"
        if sys.stderr.isatty():
            bar = "#" * (BAR * done // total)
            end = "\n" if done == total else ""
            print(f"\r[{bar:.<{BAR}}] {text}\033[K", end=end, file=sys.stderr, flush=True)
        elif now - self.shown >= LINE_SECONDS:
            self.shown = now
            print(text, file=sys.stderr, flush=True)
