import io

from spcl.telemetry import LiveLine

RECORD = {
    "stage": "adversarial",
    "step": 3,
    "steps": 20,
    "losses": {"segmentation": 1.234, "adversarial": 0.7, "critic_source": 0.6},
    "source_miou": 0.2,
    "images_per_second": 30.0,
    "eta_seconds": 61.0,
}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_line_never_wraps_and_keeps_what_matters(monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    terminal = Terminal()
    live = LiveLine(terminal)
    live.show(RECORD)
    live.show({"message": "spcl: started"})
    line, message, _ = terminal.getvalue().split("\n")
    assert line.startswith("\r\x1b[Kadversarial 3/20  ETA 1:01  30 images/s  source mIoU 20.0")
    assert len(line.removeprefix("\r\x1b[K")) < 60
    assert message == "spcl: started"


def test_elsewhere_plain_lines_come_now_and_then_and_at_a_stage_s_end():
    stream = io.StringIO()
    live = LiveLine(stream)
    for step in range(1, 21):
        live.show(RECORD | {"step": step})
    shown = [line.split()[1] for line in stream.getvalue().splitlines()]
    assert shown == ["1/20", "20/20"]
