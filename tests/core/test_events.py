from pathlib import Path

from puna.core.events import Event, EventLog, read_events


def test_events_reach_the_file_and_the_readers(tmp_path: Path) -> None:
    seen: list[Event] = []
    log = EventLog(tmp_path / "events.jsonl", (seen.append,))
    log.emit("step", loss=1.5)
    log.emit("step", loss=1.25, text="zwei\nLinien")
    log.close()
    assert [event["loss"] for event in seen] == [1.5, 1.25]
    assert list(read_events(tmp_path / "events.jsonl")) == seen


def test_a_line_torn_by_a_kill_is_left_out_and_the_next_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"kind": "a"}\n{"kind": "b", "text": "\xc3')
    log = EventLog(path)
    log.emit("c")
    log.close()
    assert [event["kind"] for event in read_events(path)] == ["a", "c"]


def test_no_file_holds_no_events(tmp_path: Path) -> None:
    assert list(read_events(tmp_path / "none.jsonl")) == []


def test_events_of_a_part_go_to_the_same_log_below_its_name(tmp_path: Path) -> None:
    seen: list[Event] = []
    log = EventLog(tmp_path / "events.jsonl", readers=(seen.append,))
    part = log.within("round-1")
    part.emit("stage_start", stage="sft")
    part.emit("note", text="hello")
    log.close()
    assert [e.get("stage", e.get("text")) for e in seen] == ["round-1/sft", "hello"]
    assert list(read_events(tmp_path / "events.jsonl")) == seen
