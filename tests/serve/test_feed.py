"""The feed: what changed is told once, votes count once, Atom is well-formed, and a mail server gets one digest a day."""

import socket
import sqlite3
import threading
import time
import xml.etree.ElementTree as ET
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email import message_from_bytes, policy
from pathlib import Path

import pytest

from anabranch.atlas.rows import rows
from anabranch.errors import InputError, WorkError
from anabranch.serve import feed as feeds
from anabranch.serve.feed import ATOM, Feed, Mail, days

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
A, B, C = (r.id for r in rows()[:3])
TITLES = {r.id: r.title for r in rows()}


@pytest.fixture
def made(tmp_path: Path):
    """A feed over a catalogue of three rows that a test may change, and that catalogue."""
    known = {A: "missing", B: "missing"}
    return Feed(tmp_path / "atlas.sqlite", lambda: dict(known)), known


def test_what_is_new_or_changed_is_told_once(made):
    feed, known = made
    assert [(e.row, e.was, e.now) for e in feed.refresh(NOON)] == [(A, None, "missing"), (B, None, "missing")]
    assert feed.refresh(NOON) == []
    known |= {A: "held", C: "runs"}
    new = feed.refresh(NOON + timedelta(days=1))
    assert [(e.row, e.was, e.now, e.at) for e in new] == [
        (A, "missing", "held", "2026-03-02T12:00:00Z"), (C, None, "runs", "2026-03-02T12:00:00Z"),
    ]  # fmt: skip
    assert [e.row for e in feed.events()] == [C, A, B, A] and feed.events(behind=2) == new[::-1]
    assert [new[0].words, new[1].words] == ["missing → held", "new, runs"]
    assert {day: [e.row for e in es] for day, es in days(feed.events()).items()} == {"2026-03-02": [C, A], "2026-03-01": [B, A]}


def test_the_whole_catalogue_is_the_default(tmp_path):
    assert len(Feed(tmp_path / "f.sqlite").refresh()) == len(rows())


def test_two_servers_on_one_file_tell_a_change_once(made):
    feed, known = made
    twin = Feed(feed.file, lambda: dict(known))
    with ThreadPoolExecutor(8) as pool:
        told = list(pool.map(lambda i: (feed, twin)[i % 2].refresh(NOON), range(16)))
    assert sum(map(len, told)) == 2 and len(feed.events()) == 2


def test_a_voter_has_one_vote_a_row_and_may_take_it_back(made):
    feed, _ = made
    for voter, row, up in [("x", A, True), ("x", A, True), ("y", A, True), ("y", B, True), ("y", B, False), ("z", C, False)]:
        feed.vote(row, voter, up)
    assert feed.votes() == {A: 2} and feed.mine("y") == {A} and feed.mine("z") == set()
    feed.vote("'; drop table vote; --", "x'--", True)
    assert feed.votes()["'; drop table vote; --"] == 1


def test_votes_outlive_the_server_and_many_threads(made):
    feed, _ = made
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: feed.vote(A, f"voter {i}", True), range(40)))
    assert Feed(feed.file).votes() == {A: 40}


def test_a_file_that_is_no_feed_is_named(tmp_path):
    (tmp_path / "atlas.sqlite").write_bytes(b"no database, but long enough to be looked at" * 99)
    with pytest.raises(WorkError, match=r"atlas\.sqlite cannot be used"):
        Feed(tmp_path / "atlas.sqlite")


def test_atom_is_well_formed_and_its_ids_stay(made, monkeypatch):
    feed, known = made
    feed.refresh(NOON)
    known[A] = "held"
    feed.refresh(NOON + timedelta(hours=1))
    known["gone<&>"] = "runs"  # a row that the catalogue lost, with a nasty name
    feed.refresh(NOON + timedelta(hours=2))
    document = feed.atom("http://here/")
    root = ET.fromstring(document)
    entries = root.findall(f"{{{ATOM}}}entry")
    assert root.tag == f"{{{ATOM}}}feed" and len(entries) == 4
    ids = [e.findtext(f"{{{ATOM}}}id") for e in entries]
    assert len(set(ids)) == 4 and ids[1] == f"tag:anabranch,2026:atlas/{A}/3"
    assert entries[1].findtext(f"{{{ATOM}}}title") == f"{TITLES[A]} (missing → held)"
    assert root.findtext(f"{{{ATOM}}}updated") == "2026-03-01T14:00:00Z" == entries[0].findtext(f"{{{ATOM}}}updated")
    for each in (root, *entries):
        assert all(each.findtext(f"{{{ATOM}}}{name}") for name in ("id", "title", "updated"))
    there = ET.fromstring(feed.atom("https://elsewhere:8000/"))
    assert [e.findtext(f"{{{ATOM}}}id") for e in there.findall(f"{{{ATOM}}}entry")] == ids
    assert ET.fromstring(Feed(feed.file.with_name("empty.sqlite")).atom("http://here/")).findtext(f"{{{ATOM}}}updated")


# ---- mail


class Kept:
    """What a mail server was given."""

    def __init__(self) -> None:
        self.mails, self.refuses = [], ""

    async def handle_DATA(self, server, session, envelope):
        if self.refuses in envelope.rcpt_tos:
            return "550 no such user"
        self.mails.append((envelope.mail_from, envelope.rcpt_tos, message_from_bytes(envelope.content, policy=policy.default)))
        return "250 OK"


@pytest.fixture
def post():
    """A mail server of this machine, and its address."""
    controller = pytest.importorskip("aiosmtpd.controller")
    handler, free = Kept(), socket.create_server(("127.0.0.1", 0))
    port = free.getsockname()[1]  # the controller itself takes no port 0
    free.close()
    server = controller.Controller(handler, hostname="127.0.0.1", port=port)
    server.start()
    yield handler, f"smtp://127.0.0.1:{port}"
    server.stop()


def test_a_digest_tells_what_is_new_and_then_only_what_is_newer(made, post):
    feed, known = made
    kept, server = post
    mail = Mail(server, "atlas@here.org", ("a@there.org", "b@there.org"))
    feed.refresh(NOON)
    feed.vote(B, "x", True)
    assert feed.digest(mail, NOON, "http://here/") == ["a@there.org", "b@there.org"]
    assert feed.digest(mail, NOON + timedelta(hours=3)) == []  # once a day
    known[A] = "held"
    feed.refresh(NOON + timedelta(hours=3))
    assert feed.digest(mail, NOON + timedelta(hours=4)) == []  # still the same day
    assert feed.digest(mail, NOON + timedelta(days=1)) == ["a@there.org", "b@there.org"]
    assert feed.digest(mail, NOON + timedelta(days=2)) == []  # nothing to tell
    assert [(sender, to) for sender, to, _ in kept.mails] == [("atlas@here.org", [f"{n}@there.org"]) for n in "abab"]
    first, second = kept.mails[0][2], kept.mails[2][2]
    text = first.get_body(("plain",)).get_content()
    assert first["Subject"] == "The atlas of anabranch, 2026-03-01: 2 new rows" and first["To"] == "a@there.org"
    assert text.index(TITLES[B]) < text.index(TITLES[A]) and "votes: 1" in text and f"http://here/atlas/{A}" in text
    assert second["Subject"] == "The atlas of anabranch, 2026-03-02: 1 changed verdicts"
    html = second.get_body(("html",)).get_content()
    assert "missing → held" in html and TITLES[B] not in html


def test_one_refused_address_keeps_none_of_the_others_waiting(made, post):
    feed, _ = made
    kept, server = post
    kept.refuses = "a@there.org"
    mail = Mail(server, "atlas@here.org", ("a@there.org", "b@there.org"))
    feed.refresh(NOON)
    with pytest.raises(WorkError, match=r"did not take the digest: SMTPDataError"):
        feed.digest(mail, NOON)
    assert [to for _, to, _ in kept.mails] == [["b@there.org"]]
    kept.refuses = ""
    assert feed.digest(mail, NOON + timedelta(hours=1)) == ["a@there.org"]


def test_a_mail_shows_markup_as_text(made, post, monkeypatch):
    feed, known = made
    kept, server = post
    known["<script>alert(1)</script>"] = "runs"
    feed.refresh(NOON)
    feed.digest(Mail(server, "a@b.c", ("d@e.f",)), NOON)
    html = kept.mails[0][2].get_body(("html",)).get_content()
    assert "<script>" not in html and "&lt;script&gt;" in html


def test_a_server_that_is_away_is_named_without_its_password(made):
    feed, _ = made
    feed.refresh(NOON)
    with pytest.raises(WorkError, match=r"mail server 127\.0\.0\.1:1 did not take") as found:
        feed.digest(Mail("smtp://me:hush@127.0.0.1:1", "a@b.c", ("d@e.f",)), NOON)
    assert "hush" not in str(found.value)
    with sqlite3.connect(feed.file) as base:
        assert base.execute("select count(*) from mail").fetchone() == (0,)


def test_a_password_goes_over_no_open_line(post, monkeypatch):
    _, server = post
    monkeypatch.setattr(feeds, "LOCAL", ())  # as if that server stood elsewhere
    with pytest.raises(WorkError, match="offers no TLS"):
        Mail(server.replace("smtp://", "smtp://me:hush@"), "a@b.c", ("d@e.f",)).send(feeds.EmailMessage())


def test_the_daily_thread_survives_a_server_that_is_away(made, post, monkeypatch):
    feed, _ = made
    kept, server = post
    stop, said = threading.Event(), []
    away = Mail("smtp://127.0.0.1:1", "a@b.c", ("d@e.f",))
    for mail, want in ((away, lambda: len(said) > 1), (Mail(server, "a@b.c", ("d@e.f",)), lambda: kept.mails)):
        stop.clear()
        thread = threading.Thread(target=feed.daily, args=(mail, stop, said.append), kwargs={"every": 0.01})
        thread.start()
        until = time.monotonic() + 10
        while not want() and time.monotonic() < until:
            time.sleep(0.01)
        stop.set()
        thread.join()
        assert want()
    assert len(kept.mails) == 1 and "did not take the digest" in said[0]


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"ANABRANCH_SMTP": "smtp://h"}, "needs ANABRANCH_SMTP"),
        ({"ANABRANCH_DIGEST": "a@b c@d"}, "needs ANABRANCH_SMTP"),
        ({"ANABRANCH_SMTP": "http://h", "ANABRANCH_DIGEST": "a@b c@d"}, "smtp://user:password@host"),
        ({"ANABRANCH_SMTP": "smtp://h:x", "ANABRANCH_DIGEST": "a@b c@d"}, "smtp://user:password@host"),
        ({"ANABRANCH_SMTP": "smtp://h", "ANABRANCH_DIGEST": "a@b cd"}, "got 'cd'"),
        ({"ANABRANCH_SMTP": "smtp://h", "ANABRANCH_DIGEST": "a@b <c@d>"}, "got '<c@d>'"),
    ],
)  # fmt: skip
def test_wrong_settings_are_wrong_requests(environment, said):
    with pytest.raises(InputError, match=said):
        Mail.told(environment)


def test_settings_come_from_the_environment():
    assert Mail.told({}) is None
    told = Mail.told({"ANABRANCH_SMTP": "smtps://u:p%40@h:465", "ANABRANCH_DIGEST": "a@b.c d@e.f,g@h.i"})
    assert told == Mail("smtps://u:p%40@h:465", "a@b.c", ("d@e.f", "g@h.i"))


def test_cron_may_send_it_without_a_server(tmp_path, post, monkeypatch, capsys):
    kept, server = post
    assert feeds.main([str(tmp_path / "f.sqlite")]) == 2 and "usage" in capsys.readouterr().err
    monkeypatch.setenv("ANABRANCH_SMTP", server)
    monkeypatch.setenv("ANABRANCH_DIGEST", "a@b.c d@e.f")
    assert [feeds.main([str(tmp_path / "f.sqlite")]) for _ in range(2)] == [0, 0]
    assert capsys.readouterr().out == "sent to 1 of 1\nsent to 0 of 1\n"
    assert len(kept.mails) == 1 and f"and {len(rows()) - feeds.SHOWN} more" in kept.mails[0][2].get_body(("plain",)).get_content()
    monkeypatch.setenv("ANABRANCH_SMTP", "smtp://127.0.0.1:1")
    assert feeds.main([str(tmp_path / "g.sqlite")]) == 1
