"""Every format of `python -m training import`: what it makes of a file, and what it says of a broken one.

Files in a publisher's form are made up here; where the publishers' own are at hand (``../shared/data``, or
the folder that TURNWISE_DATA names), the result is compared with the corpora prepared from them.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from chatbot.transcripts import Transcript, TranscriptError, read_transcripts
from training.importers import FORMATS, SourceError
from training.importers.ubuntu_irc import QUESTION_PARTS, QUESTION_SPREAD, REST, SEARCH

Write = Callable[[str, object], Path]
DATA = Path(os.environ.get("TURNWISE_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))


def imported(
    name: str, *sources: Path, options: Sequence[str] = (), skipped: Counter[str] | None = None
) -> list[Transcript]:
    """All transcripts of the sources, read as the command line reads them."""
    parser = argparse.ArgumentParser()
    FORMATS[name].add_arguments(parser)
    importer = FORMATS[name].from_arguments(parser.parse_args(options))
    tally: Counter[str] = Counter() if skipped is None else skipped

    def skip(reason: str) -> None:
        tally[reason] += 1

    return [transcript for file in importer.files(sources) for transcript in importer.read(file, skip)]


def said(transcript: Transcript) -> list[tuple[str, str]]:
    return [(turn.role, turn.text) for turn in transcript.turns]


def refused(name: str, source: Path, options: Sequence[str] = ()) -> str:
    """The reason for which a source is refused, its own path written as FILE."""
    with pytest.raises((SourceError, TranscriptError)) as caught:
        imported(name, source, options=options)
    return str(caught.value).replace(str(source), "FILE")


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a file of text, bytes or JSON and return its path."""

    def write(name: str, content: object) -> Path:
        path = tmp_path / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return path

    return write


# ---- Native JSON lines ---------------------------------------------------------------------------


def test_jsonl_keeps_turns_and_unknown_keys_as_they_are(write: Write) -> None:
    line = {"id": "a", "turns": [{"role": "user", "text": " two  spaces\n", "mood": "calm"}], "site": 3}
    (transcript,) = imported("jsonl", write("a.jsonl", line))
    assert transcript.model_dump(exclude_unset=True) == line | {"turns": tuple(line["turns"])}  # type: ignore[arg-type]


def test_jsonl_names_the_broken_line(write: Write) -> None:
    good = json.dumps({"id": "a", "turns": []})
    assert refused("jsonl", write("a.jsonl", f"{good}\nnonsense\n")).startswith("FILE:2: ")


# ---- CSV and TSV ---------------------------------------------------------------------------------

TICKETS = """ticket,who,said,when
7,Customer,My card is blocked.,2024-05-01T10:00:00+02:00
8,customer,Hello?,2024-05-01T08:00:30Z
7,SUPPORT,"Sorry to hear that,
which card?",2024-05-01T10:01:00+02:00
7,support,"The ""gold"" one?",2024-05-01T10:02:00+02:00
7,system,ticket was tagged,2024-05-01T10:03:00+02:00
7,customer,  ,2024-05-01T10:04:00+02:00
7,customer,Yes.,2024-05-01T10:05:00+02:00
"""
COLUMNS = ["--conversation-column", "ticket", "--role-column", "who", "--text-column", "said"]
ROLES = ["--user-role", "customer", "--agent-role", "support", "--agent-role", "bot", "--skip-role", "system"]


def test_csv_rows_become_conversations_of_named_columns(write: Write) -> None:
    skipped: Counter[str] = Counter()
    first, second = imported("csv", write("a.csv", TICKETS), options=COLUMNS + ROLES, skipped=skipped)
    assert first.id == "7"
    assert said(first) == [
        ("user", "My card is blocked."),
        ("agent", 'Sorry to hear that,\nwhich card? The "gold" one?'),
        ("user", "Yes."),
    ]
    assert (second.id, said(second)) == ("8", [("user", "Hello?")])
    assert skipped == {"row of a role to skip": 1, "row without text": 1}


def test_csv_without_a_time_column_writes_no_times(write: Write) -> None:
    transcripts = imported("csv", write("a.csv", TICKETS), options=COLUMNS + ROLES)
    assert all(turn.model_fields_set == {"role", "text"} for t in transcripts for turn in t.turns)


def test_csv_times_order_the_messages_and_are_kept_in_utc(write: Write) -> None:
    rows = (
        "conversation,role,text,at\n"
        "c,agent,late,2024-05-01T12:00:00+02:00\n"
        "c,user,early,2024-05-01T09:30:00Z\n"
        "c,user,early too,2024-05-01T09:30:00Z\n"
    )
    (transcript,) = imported("csv", write("a.csv", rows), options=["--time-column", "at"])
    assert said(transcript) == [("user", "early early too"), ("agent", "late")]
    assert [turn.at for turn in transcript.turns] == [
        datetime(2024, 5, 1, 9, 30, tzinfo=UTC),
        datetime(2024, 5, 1, 10, 0, tzinfo=UTC),
    ]


def test_csv_times_without_an_offset_need_a_zone(write: Write) -> None:
    path = write("a.csv", "conversation,role,text,at\nc,user,hi,2024-05-01 09:30\n")
    assert refused("csv", path, ["--time-column", "at"]) == (
        "FILE: line 2: '2024-05-01 09:30' has no offset from UTC (see --time-zone)"
    )
    (transcript,) = imported("csv", path, options=["--time-column", "at", "--time-zone", "utc"])
    assert transcript.turns[0].at == datetime(2024, 5, 1, 9, 30, tzinfo=UTC)


def test_csv_may_begin_with_a_byte_order_mark_and_be_compressed(write: Write) -> None:
    rows = b"\xef\xbb\xbfconversation,role,text\r\nc,user,gr\xc3\xbc\xc3\x9f dich\r\n"
    plain, packed = write("a.csv", rows), write("b.csv.gz", gzip.compress(rows))
    assert imported("csv", plain) == imported("csv", packed)
    assert said(imported("csv", plain)[0]) == [("user", "grüß dich")]


def test_csv_reads_other_encodings_when_told(write: Write) -> None:
    path = write("a.csv", "conversation,role,text\nc,user,hello\nc,agent,grüß dich\n".encode("latin-1"))
    assert refused("csv", path).startswith("FILE: line 3: not utf-8-sig: ")
    (transcript,) = imported("csv", path, options=["--encoding", "latin-1"])
    assert transcript.turns[1].text == "grüß dich"


def test_csv_in_utf_16_is_refused_or_read(write: Write) -> None:
    path = write("a.csv", "conversation,role,text\nc,user,hello\n".encode("utf-16"))
    reason = refused("csv", path)
    assert reason.startswith("FILE: line 1: not utf-8-sig: ")
    assert reason.endswith("(see --encoding: perhaps utf-16)")
    assert said(imported("csv", path, options=["--encoding", "utf-16"])[0]) == [("user", "hello")]


@pytest.mark.parametrize(("written", "likely"), [("utf-8", "utf-8"), ("utf-16-le", "utf-16-le")])
def test_csv_that_is_not_in_utf_16_as_told_is_refused(write: Write, written: str, likely: str) -> None:
    path = write("a.csv", "conversation,role,text\nc,user,hello\n".encode(written))
    reason = refused("csv", path, ["--encoding", "utf-16"])
    assert reason.startswith("FILE: line 1: not utf-16: ")
    assert reason.endswith(f"(see --encoding: perhaps {likely})")


def test_an_undecodable_line_far_into_a_file_is_named(write: Write) -> None:
    rows = [b"conversation,role,text", *(b"c,user,number %d" % n for n in range(5000))]
    rows[4321] += b"\xff"
    assert refused("csv", write("a.csv", b"\n".join(rows))).startswith("FILE: line 4322: not utf-8-sig: ")


def test_tsv_splits_at_tabs(write: Write) -> None:
    (transcript,) = imported("tsv", write("a.tsv", 'conversation\trole\ttext\nc\tuser\t"a, b"\n'))
    assert said(transcript) == [("user", "a, b")]


def test_quotation_marks_can_be_ordinary_characters(write: Write) -> None:
    path = write("a.tsv", 'conversation\trole\ttext\nc\tuser\t"a" or\nc\tuser\t"b\n')
    (transcript,) = imported("tsv", path, options=["--no-quotes"])
    assert said(transcript) == [("user", '"a" or "b')]


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ("", "FILE: line 1: the file is empty"),
        (
            "id,role,text\n",
            "FILE: line 1: no column 'conversation'; the columns are 'id', 'role', 'text' (see --conv",
        ),
        ("conversation,role,text,text\n", "FILE: line 1: column 'text' occurs more than once"),
        ("conversation,role,text\nc,user\n", "FILE: line 2: 2 fields where the header has 3"),
        ('conversation,role,text\nc,user,"a\nb"\n\nc,user,"x\n', "FILE: line 5: unexpected end of data"),
        ('conversation,role,text\nc,user,"a"b\n', "FILE: line 2: ',' expected after '\"'"),
        ("conversation,role,text\n ,user,hi\n", "FILE: line 2: conversation is empty"),
        (
            "conversation,role,text\nc,bot,hi\n",
            "FILE: line 2: role 'bot' is none of 'user', 'agent' (see --user-role, --agent-role",
        ),
    ],
)
def test_a_broken_csv_is_refused_with_its_line(write: Write, rows: str, reason: str) -> None:
    assert refused("csv", write("a.csv", rows)).startswith(reason)


def test_a_time_that_is_none_is_refused_with_its_line(write: Write) -> None:
    path = write("a.csv", "conversation,role,text,at\nc,user,hi,yesterday\n")
    assert refused("csv", path, ["--time-column", "at"]) == (
        "FILE: line 2: 'yesterday' is not an ISO 8601 time (see --time-format)"
    )
    form = ["--time-column", "at", "--time-format", "%d.%m.%Y"]
    assert refused("csv", path, form) == (
        "FILE: line 2: 'yesterday' is not of the form %d.%m.%Y (see --time-format)"
    )


def test_a_time_at_the_end_of_all_calendars_is_refused_with_its_line(write: Write) -> None:
    """The year 1 is what some help desks write for no time."""
    path = write("a.csv", "conversation,role,text,at\nc,user,hi,0001-01-01T00:00:00\n")
    assert refused("csv", path, ["--time-column", "at", "--time-zone", "Europe/Berlin"]) == (
        "FILE: line 2: '0001-01-01T00:00:00' is not within the years 1 to 9999 UTC"
    )


def test_csv_times_of_another_form_are_read_when_told(write: Write) -> None:
    rows = "conversation,role,text,at\nc,agent,late,05/01/2024 2:00 PM\nc,user,early,05/01/2024 11:30 AM\n"
    options = ["--time-column", "at", "--time-format", "%m/%d/%Y %I:%M %p", "--time-zone", "UTC"]
    (transcript,) = imported("csv", write("a.csv", rows), options=options)
    assert said(transcript) == [("user", "early"), ("agent", "late")]
    assert transcript.turns[0].at == datetime(2024, 5, 1, 11, 30, tzinfo=UTC)


def test_csv_roles_that_are_not_named_may_stand_for_one_side(write: Write) -> None:
    """A help desk's export has names where a role is wanted: those of the team are few."""
    rows = "conversation,role,text\nc,Ann,hi\nc,Team Bonn,hello\nc,Macro,tagged\nd,Ben,hey\n"
    options = ["--user-role", "*", "--agent-role", "team bonn", "--skip-role", "macro"]
    first, second = imported("csv", write("a.csv", rows), options=options)
    assert said(first) == [("user", "hi"), ("agent", "hello")]
    assert said(second) == [("user", "hey")]
    nobody = write("b.csv", "conversation,role,text\nc,,hi\n")
    assert refused("csv", nobody, options).startswith("FILE: line 2: role '' is none of ")


# What spreadsheets make of a table.


@pytest.mark.parametrize(
    ("rows", "options"),
    [
        ("conversation;role;text\nc;user;a, b\nc;agent;d\n", ["--delimiter", ";"]),
        ("sep=;\r\nconversation;role;text\r\nc;user;a, b\r\nc;agent;d\r\n", []),
        ('conversation,role,text,,\nc,user,"a, b",,\n,,,,\nc,agent,d,,\n , ,,,\n', []),
        ("conversation\trole\ttext\nc\tuser\ta, b\nc\tagent\td\n", ["--delimiter", r"\t"]),
    ],
)
def test_csv_of_a_spreadsheet_is_read(write: Write, rows: str, options: list[str]) -> None:
    (transcript,) = imported("csv", write("a.csv", rows), options=options)
    assert said(transcript) == [("user", "a, b"), ("agent", "d")]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lines_of_a_message_end_alike_whatever_system_wrote_them(write: Write, end: str) -> None:
    rows = ["conversation,role,text", f'c,user,"a{end}{end}b"', "c,agent,d", ""]
    (transcript,) = imported("csv", write("a.csv", end.join(rows).encode()))
    assert said(transcript) == [("user", "a\n\nb"), ("agent", "d")]


def test_a_delimiter_that_is_another_is_told(write: Write) -> None:
    path = write("a.csv", "conversation;role;text\n")
    assert refused("csv", path).endswith("'conversation;role;text' (see --delimiter: is it ';'?)")


def test_lines_are_counted_with_the_one_that_names_the_delimiter(write: Write) -> None:
    path = write("a.csv", "sep=;\nconversation;role;text\nc;user;hi\nc;bot;hi\n")
    assert refused("csv", path).startswith("FILE: line 4: role 'bot'")


@pytest.mark.parametrize("head", [b"PK\x03\x04\x14\x00", b"\xd0\xcf\x11\xe0\xa1\xb1"])
def test_a_workbook_is_told_from_a_table(write: Write, head: bytes) -> None:
    assert refused("csv", write("a.csv", head)) == (
        "FILE: an Excel workbook or an archive: save a sheet as CSV UTF-8"
    )


def test_csv_takes_a_message_as_long_as_a_line_may_be(write: Write) -> None:
    log = "x " * 100_000
    (transcript,) = imported("csv", write("a.csv", f"conversation,role,text\nc,user,{log}\n"))
    assert said(transcript) == [("user", log.strip())]


def test_a_role_cannot_mean_both_sides(write: Write) -> None:
    path = write("a.csv", "conversation,role,text\n")
    assert "'Bot' is given two meanings" in refused(
        "csv", path, ["--user-role", "bot", "--agent-role", "Bot"]
    )


@pytest.mark.parametrize(
    "option",
    [
        ["--encoding", "utf-9"],
        ["--encoding", "hex"],
        ["--time-zone", "../UTC"],
        ["--time-format", "%Q"],
        ["--delimiter", '"'],
        ["--delimiter", "::"],
    ],
)
def test_options_that_cannot_be_are_refused_at_once(option: list[str]) -> None:
    parser = argparse.ArgumentParser()
    FORMATS["csv"].add_arguments(parser)
    with pytest.raises(SystemExit):
        parser.parse_args(option)


# ---- STAR ----------------------------------------------------------------------------------------


def star(*events: tuple[str, str, str | None], number: int = 3) -> dict[str, Any]:
    shown = [{"Agent": a, "Action": b} | ({} if text is None else {"Text": text}) for a, b, text in events]
    return {"DialogueID": number, "Events": shown, "Scenario": {"Domains": ["hotel"]}}


def test_star_keeps_what_was_on_the_screen(write: Write) -> None:
    dialogue = star(
        ("UserGuide", "instruct", "Ask for a room."),
        ("User", "utter", "I need  a room\nplease"),
        ("Wizard", "request_suggestions", "ask the name"),
        ("Wizard", "pick_suggestion", "May I have your name?"),
        ("User", "utter", "Ann"),
        ("Wizard", "query", None),
        ("KnowledgeBase", "return_item", None),
        ("Wizard", "utter", "Room 4 is free."),
        ("Wizard", "pick_suggestion", "Shall I book it?"),
        ("User", "complete", None),
    )
    (transcript,) = imported("star", write("3.json", dialogue))
    assert transcript.id == "star-3"
    assert said(transcript) == [
        ("user", "I need a room please"),
        ("agent", "May I have your name?"),
        ("user", "Ann"),
        ("agent", "Room 4 is free. Shall I book it?"),
    ]
    assert all(turn.model_fields_set == {"role", "text"} for turn in transcript.turns)


def test_star_reads_a_directory_in_the_order_of_its_numbers(write: Write, tmp_path: Path) -> None:
    for number in (10, 9, 2):
        write(f"{number}.json", star(("User", "utter", "hi"), number=number))
    write("notes.txt", "not a dialogue")
    transcripts = imported("star", tmp_path, options=["--id-prefix", "s"])
    assert [transcript.id for transcript in transcripts] == ["s2", "s9", "s10"]


def test_star_leaves_out_a_dialogue_in_which_nobody_speaks(write: Write) -> None:
    skipped: Counter[str] = Counter()
    assert imported("star", write("3.json", star(("User", "complete", None))), skipped=skipped) == []
    assert skipped == {"nobody says anything": 1}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "EOF while parsing"),
        ("[]", "FILE: Input should be"),
        ({"Events": []}, "FILE: DialogueID: Field required"),
        (star(("User", "utter", "hi"), ("User", "utter", None)), "FILE: Events.1: User utter has no Text"),
        (
            '{"DialogueID": 1, "Events": [{"Agent": "User", "Action": "utter", "Text": "\\ud800"}]}',
            "unexpected end of hex escape at line 1 column 82",
        ),
        ("[" * 60_000, "FILE: Invalid JSON"),
    ],
)
def test_a_broken_star_file_is_refused_with_its_place(write: Write, content: object, reason: str) -> None:
    assert reason in refused("star", write("3.json", content))


# ---- Lists of dialogues --------------------------------------------------------------------------


def test_sgd_takes_the_utterances(write: Write) -> None:
    turns = [
        {"speaker": "USER", "utterance": "A table for two.", "frames": [{"service": "Restaurants_1"}]},
        {"speaker": "SYSTEM", "utterance": "When?", "frames": []},
    ]
    path = write("dialogues_001.json", [{"dialogue_id": "1_00000", "services": [], "turns": turns}])
    (transcript,) = imported("sgd", path)
    assert transcript.id == "sgd-1_00000"
    assert said(transcript) == [("user", "A table for two."), ("agent", "When?")]


def test_sgd_reads_only_dialogues_of_a_directory(write: Write, tmp_path: Path) -> None:
    write("schema.json", [{"service_name": "Restaurants_1"}])
    write("dialogues_001.json", [])
    assert imported("sgd", tmp_path) == []


def test_sgd_names_the_dialogue_and_the_turn(write: Write) -> None:
    good = {"speaker": "USER", "utterance": "hi"}
    dialogues = [
        {"dialogue_id": "a", "turns": [good]},
        {"dialogue_id": "b", "turns": [good, good | {"speaker": "BOT"}]},
    ]
    reason = refused("sgd", write("dialogues_001.json", dialogues))
    assert reason == "FILE: dialogue 1, turns.1.speaker: Input should be 'USER' or 'SYSTEM'"


@pytest.mark.parametrize(("user", "assistant"), [("user", "assistant"), ("USER", "ASSISTANT")])
def test_taskmaster_joins_what_one_side_says_in_a_row(write: Write, user: str, assistant: str) -> None:
    utterances = [
        {"index": 0, "speaker": user, "text": "A latte."},
        {"index": 1, "speaker": user, "text": "With oat milk."},
        {"index": 2, "speaker": assistant, "text": "Coming up!"},
    ]
    path = write("data_00.json", [{"conversation_id": "dlg-1", "utterances": utterances}])
    (transcript,) = imported("taskmaster", path, options=["--id-prefix", "tm1-"])
    assert transcript.id == "tm1-dlg-1"
    assert said(transcript) == [("user", "A latte. With oat milk."), ("agent", "Coming up!")]


def test_taskmaster_names_the_conversation(write: Write) -> None:
    path = write("data_00.json", [{"conversation_id": "a", "utterances": []}, {"conversation_id": "b"}])
    assert refused("taskmaster", path) == "FILE: conversation 1, utterances: Field required"


def test_a_damaged_gzip_file_is_refused(write: Write) -> None:
    path = write("data_00.json.gz", gzip.compress(b"[]" * 5000)[:-12])
    assert refused("taskmaster", path).startswith("FILE: not readable as gzip: ")


def test_a_directory_without_files_of_the_form_is_refused(tmp_path: Path) -> None:
    assert refused("star", tmp_path) == "FILE: the directory holds no *.json"


# ---- Self-dialogues ------------------------------------------------------------------------------


def test_a_directory_is_read_whatever_the_case_of_the_endings(tmp_path: Path) -> None:
    """Half of an export would be missing without a word."""
    rows = "conversation,role,text\n{0},user,hi\n"
    (tmp_path / "a.csv").write_text(rows.format("one"))
    (tmp_path / "B.CSV").write_text(rows.format("two"))
    (tmp_path / "C.Csv.GZ").write_bytes(gzip.compress(rows.format("three").encode()))
    (tmp_path / "notes.txt").write_text("not a table")
    assert {transcript.id for transcript in imported("csv", tmp_path)} == {"one", "two", "three"}


def test_self_dialogue_orders_sentences_by_number_and_alternates(write: Write) -> None:
    header = "HITId,AssignmentId,Answer.sentence1,Answer.sentence10,Answer.sentence2,Answer.sentence3\n"
    path = write(
        "Batch_1_batch_results.csv", header + "h,a1,one,ten,two,three\nh,a2,,,,\nh,a3,one,{},,three\n"
    )
    skipped: Counter[str] = Counter()
    first, second = imported("self_dialogue", path, skipped=skipped)
    assert first.id == "self_dialogue-a1"
    assert said(first) == [("user", "one"), ("agent", "two"), ("user", "three"), ("agent", "ten")]
    assert said(second) == [("user", "one three")]
    assert skipped == {"no sentence was written": 1}


def test_self_dialogue_needs_its_columns(write: Write) -> None:
    assert refused("self_dialogue", write("a.csv", "AssignmentId,x\n")) == (
        "FILE: line 1: no column Answer.sentence1"
    )
    path = write("b.csv", "AssignmentId,Answer.sentence1\n,hello\n")
    assert refused("self_dialogue", path) == "FILE: line 2: AssignmentId is empty"


# ---- Ubuntu IRC ----------------------------------------------------------------------------------


def log(*lines: str) -> str:
    """``nick> text`` lines as a log; anything else as a system line."""
    return "".join(
        f"[10:{n % 60:02}] <{line}\n" if "> " in line else f"=== {line}\n" for n, line in enumerate(lines)
    )


def exchanges(write: Write, *lines: str) -> dict[str, list[tuple[str, str]]]:
    transcripts = imported("ubuntu_irc", write("day.ascii.txt", log(*lines)))
    return {transcript.id.removeprefix("irc_support-day:"): said(transcript) for transcript in transcripts}


def test_irc_exchanges_are_found_by_who_addresses_whom(write: Write) -> None:
    found = exchanges(
        write,
        "ann> my sound is gone",
        "ben joined",
        "ben> morning  all",
        "cara> ann: which card do you have?",
        "dave> ann: did you reboot?",
        "ann> hm",
        "ann> cara: how do I see that?",
        "cara> ann, lspci",
        "ann> ben: hello",
    )
    assert found == {  # numbered by the answer's place among the messages; system lines are none
        "2": [
            ("user", "my sound is gone"),
            ("agent", "which card do you have?"),
            ("user", "how do I see that?"),
            ("agent", "lspci"),
        ],
        "3": [("user", "my sound is gone"), ("agent", "did you reboot?")],
        "7": [("user", "morning all"), ("agent", "hello")],
    }


def test_irc_an_address_names_somebody_of_the_log(write: Write) -> None:
    assert (
        exchanges(write, "ann> hi", "ben> note: hi is short", "ben> ben: talk to myself", "ben> ann hi") == {}
    )


def test_irc_questions_have_a_bounded_number_of_parts(write: Write) -> None:
    parts = [f"part {n}" for n in range(QUESTION_PARTS + 2)]
    found = exchanges(write, *(f"ann> {part}" for part in parts), "ben> ann: slowly")
    assert found[str(len(parts))][0] == ("user", " ".join(parts[-QUESTION_PARTS:]))


@pytest.mark.parametrize(
    ("between", "question"), [(QUESTION_SPREAD - 1, "old new"), (QUESTION_SPREAD, "new")]
)
def test_irc_parts_of_a_question_stand_close_together(write: Write, between: int, question: str) -> None:
    found = exchanges(write, "ann> old", *["zoe> hm hm"] * between, "ann> new", "ben> ann: yes")
    assert found[str(between + 2)] == [("user", question), ("agent", "yes")]


@pytest.mark.parametrize(("between", "found"), [(SEARCH - 1, True), (SEARCH, False)])
def test_irc_a_question_is_looked_for_only_so_far_back(write: Write, between: int, found: bool) -> None:
    assert bool(exchanges(write, "ann> help", *["zoe> hm hm"] * between, "ben> ann: yes")) is found


def test_irc_a_question_ends_where_the_user_talked_to_somebody_else(write: Write) -> None:
    found = exchanges(write, "zoe> hm hm", "ann> one", "ann> zoe: two", "ann> three", "ben> ann: yes")
    assert found["4"] == [("user", "three"), ("agent", "yes")]


@pytest.mark.parametrize(("between", "ids"), [(REST - 1, ["1"]), (REST, ["1", str(REST + 2)])])
def test_irc_an_exchange_that_rests_too_long_is_over(write: Write, between: int, ids: list[str]) -> None:
    lines = ["ann> help", "ben> ann: yes", *["zoe> hm hm"] * (between - 1), "ann> again", "ben> ann: no"]
    assert list(exchanges(write, *lines)) == ids


def test_irc_threads_can_follow_the_annotated_links(write: Write) -> None:
    lines = [
        "ann> my sound is gone",
        "ben joined",
        "ann> completely",
        "cara> which card?",
        "dave> reboot",
        "ann> ati",
    ]
    path = write("day.raw.txt", log(*lines, "zoe> hm hm"))
    write("day.annotation.txt", "0 0 -\n1 1 -\n2 0 -\n2 3 -\n2 4 -\n3 5 -\n6 6 -\n")
    skipped: Counter[str] = Counter()
    (transcript,) = imported("ubuntu_irc", path, options=["--threads", "links"], skipped=skipped)
    assert transcript.id == "irc_support-day:2"
    assert said(transcript) == [
        ("user", "my sound is gone completely"),
        ("agent", "which card?"),
        ("user", "ati"),
    ]
    assert skipped == {"line that is not a message": 1, "thread that nobody answered": 1}


def test_irc_reads_each_log_once_whatever_of_it_is_named(write: Write, tmp_path: Path) -> None:
    texts = log("ann> help", "ben> ann: yes")
    annotation, plain = write("day.annotation.txt", "0 0 -\n"), write("day.ascii.txt", texts)
    raw = write("day.raw.txt", texts)
    importer = FORMATS["ubuntu_irc"]
    parser = argparse.ArgumentParser()
    importer.add_arguments(parser)
    reader = importer.from_arguments(parser.parse_args([]))
    assert reader.files([tmp_path]) == reader.files([raw, annotation]) == [plain]
    assert reader.files([raw]) == [raw]


@pytest.mark.parametrize(
    ("annotation", "reason"),
    [
        ("0 0 -\nzero one -\n", "line 2: not of the form: LINE LINE -"),
        ("0 2 -\n", "line 1: links line 2, but the log has only 2 (the first is 0)"),
    ],
)
def test_a_broken_annotation_is_refused_with_its_line(write: Write, annotation: str, reason: str) -> None:
    path = write("day.ascii.txt", log("ann> help", "ben> ann: yes"))
    write("day.annotation.txt", annotation)
    assert reason in refused("ubuntu_irc", path, ["--threads", "links"])


def test_a_file_that_is_no_log_is_refused(write: Write) -> None:
    path = write("day.ascii.txt", "Dear diary,\n")
    assert refused("ubuntu_irc", path) == "FILE: no line of the form [HH:MM] <nick> text"
    alone = write("night.annotation.txt", "0 0 -\n")
    assert refused("ubuntu_irc", alone).startswith("FILE: neither night.ascii.txt nor night.raw.txt")


# ---- The publishers' own files -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "raw", "prepared", "count"),
    [
        ("star", "star", "star", 12),
        ("taskmaster", "taskmaster4", "tm4", 60),
        ("sgd", "sgd", "sgd", 20),
        ("self_dialogue", "self_dialogue", "self_dialogue", 40),
        ("ubuntu_irc", "irc", "irc_support", 105),
    ],
)
def test_publishers_files_give_the_prepared_conversations(
    name: str, raw: str, prepared: str, count: int
) -> None:
    if not (DATA / "raw" / raw).is_dir():
        pytest.skip(f"{DATA / 'raw' / raw} is not there")
    transcripts = imported(name, DATA / "raw" / raw)
    ids = {transcript.id for transcript in transcripts}
    expected: dict[str, list[Transcript]] = {}  # sgd uses its numbers again in dev
    for part in ("train", "dev"):
        for transcript in read_transcripts(DATA / prepared / f"{part}.jsonl.gz"):
            if transcript.id in ids:
                expected.setdefault(transcript.id, []).append(transcript)
    assert len(transcripts) == count
    assert all(transcript in expected.get(transcript.id, []) for transcript in transcripts)


def test_irc_finds_every_prepared_exchange_of_the_log() -> None:
    if not (DATA / "raw" / "irc").is_dir():
        pytest.skip(f"{DATA / 'raw' / 'irc'} is not there")
    found = {transcript.id for transcript in imported("ubuntu_irc", DATA / "raw" / "irc")}
    prepared = (
        t.id for part in ("train", "dev") for t in read_transcripts(DATA / "irc_support" / f"{part}.jsonl.gz")
    )
    assert {id_ for id_ in prepared if "2004-12-25.train-c:" in id_} == found
