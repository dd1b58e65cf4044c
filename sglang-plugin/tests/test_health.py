"""What is logged how often, and that no sample is told twice."""

import logging

import pytest
from memkv_sglang.health import QUIET_SECONDS, REMINDER_SECONDS, SAMPLES_MAX, Incidents, Meter

pytestmark = pytest.mark.unit


class Metrics:
    def __init__(self) -> None:
        self.prefetch_pgs: list[int] = []
        self.backup_pgs: list[int] = []
        self.prefetch_bandwidth: list[float] = []
        self.backup_bandwidth: list[float] = []


def test_an_incident_is_told_once_then_reminded_then_closed(caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    incidents = Incidents(logging.getLogger("test"), lambda: now[0])
    with caplog.at_level(logging.INFO, "test"):
        for _ in range(100):
            incidents.failed("get", 3, "gone")
            incidents.succeeded("get")  # another server still answers; the incident is not over
        assert len(caplog.records) == 1
        now[0] = REMINDER_SECONDS
        incidents.failed("get", 3, "gone")
        assert len(caplog.records) == 2
        assert "297 more" in caplog.records[1].getMessage()
        incidents.failed("put", 1, "full")
        assert len(caplog.records) == 3
        now[0] += QUIET_SECONDS
        incidents.succeeded("get")
        incidents.succeeded("get")
        assert caplog.records[-1].getMessage() == "memkv: get works again"
        assert len(caplog.records) == 4
        incidents.failed("get", 1, "gone again")
        assert len(caplog.records) == 5
    assert incidents.counts() == {"get": 304, "put": 1}


def test_samples_are_handed_out_once() -> None:
    meter = Meter()
    meter.read(128, 2_000_000_000, 0.5)
    meter.wrote(5, 1_000_000_000, 1.0)
    meter.wrote(0, 0, 1.0)
    metrics = meter.collect(Metrics())
    assert (metrics.prefetch_pgs, metrics.prefetch_bandwidth) == ([128], [4.0])
    assert (metrics.backup_pgs, metrics.backup_bandwidth) == ([5], [1.0])
    again = meter.collect(Metrics())
    assert not (again.prefetch_pgs or again.backup_pgs)


def test_samples_that_nobody_collects_stay_bounded() -> None:
    meter = Meter()
    for _ in range(3 * SAMPLES_MAX):
        meter.read(1, 1, 1.0)
    assert len(meter.collect(Metrics()).prefetch_pgs) == SAMPLES_MAX
