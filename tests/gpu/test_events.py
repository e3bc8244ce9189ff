import json

import pytest

from gpu.events import Event, EventTail, EventWriter, read_events


def test_numbers_start_at_one_and_have_no_holes(tmp_path):
    with EventWriter(tmp_path) as events:
        for step in range(5):
            events.write("progress", step=step)
    assert [event.seq for event in read_events(tmp_path)] == [1, 2, 3, 4, 5]


def test_a_half_written_line_of_a_killed_writer_is_cut_off(tmp_path):
    with EventWriter(tmp_path) as events:
        events.write("started", step=0)
        events.write("progress", step=1)
    with open(tmp_path / "events.jsonl", "ab") as file:
        file.write(b'{"v":1,"seq":3,"attempt":1,"ty')
    with EventWriter(tmp_path, attempt=2) as events:
        assert events.write("started", step=0).seq == 3
    assert [(event.seq, event.attempt) for event in read_events(tmp_path)] == [(1, 1), (2, 1), (3, 2)]


def test_a_tail_gives_each_event_once_and_never_half_of_one(tmp_path):
    tail = EventTail(tmp_path)
    assert tail.read() == []
    events = EventWriter(tmp_path)
    events.write("progress", step=1)
    with open(events.path, "ab") as file:
        file.write(b'{"v":1,"seq":2,')
    assert [event.data["step"] for event in tail.read()] == [1]
    with open(events.path, "ab") as file:
        file.write(b'"attempt":1,"type":"progress","at":"2026-01-01T00:00:00+00:00","data":{"step":2}}\n')
    assert [event.data["step"] for event in tail.read()] == [2]
    assert tail.read() == []


def test_a_limited_read_leaves_the_rest_for_the_next(tmp_path):
    with EventWriter(tmp_path) as events:
        for step in range(5):
            events.write("progress", step=step)
    tail = EventTail(tmp_path)
    assert [len(tail.read(limit=2)) for _ in range(4)] == [2, 2, 1, 0]


def test_numbers_that_json_has_not_become_null(tmp_path):
    with EventWriter(tmp_path) as events:
        events.write("progress", loss=float("nan"), nested=[float("inf"), {"x": float("-inf")}])
    line = json.loads((tmp_path / "events.jsonl").read_text())
    assert line["data"] == {"loss": None, "nested": [None, {"x": None}]}


def test_what_no_database_takes_for_text_is_replaced(tmp_path):
    with EventWriter(tmp_path) as events:
        events.write("waiting", message="name\0 of a \ud800 damaged file", nested=[{"x": "\0"}])
    line = json.loads((tmp_path / "events.jsonl").read_text(encoding="utf-8"))
    assert line["data"] == {"message": "name\ufffd of a ? damaged file", "nested": [{"x": "\ufffd"}]}


def test_a_full_disk_leaves_no_half_line(tmp_path, monkeypatch):
    events = EventWriter(tmp_path)
    events.write("progress", step=1)

    class FullDisk:
        def __init__(self, file):
            self._file = file

        def write(self, line):
            return self._file.write(line[:10])

        def __getattr__(self, name):
            return getattr(self._file, name)

    monkeypatch.setattr(events, "_file", FullDisk(events._file))
    with pytest.raises(OSError, match="no space"):
        events.write("progress", step=2)
    assert [event.seq for event in read_events(tmp_path)] == [1]
    assert EventWriter(tmp_path).write("progress", step=2).seq == 2


def test_an_unknown_type_is_a_programming_error(tmp_path):
    with pytest.raises(ValueError, match="unknown event type"):
        EventWriter(tmp_path).write("progres")


@pytest.mark.parametrize("type", [["waiting"], {}, None, 1, "unknown"])
def test_a_line_whose_type_is_none_is_no_event(type):
    with pytest.raises(ValueError, match="not an event"):
        Event.from_json(json.dumps({"v": 1, "seq": 1, "attempt": 1, "type": type, "at": "2026-11-22T13:00:00+00:00", "data": {}}))
