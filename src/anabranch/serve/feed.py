"""The atlas as a feed: what is new and which verdicts changed, votes, an Atom document, and a digest by email once a day.

    ANABRANCH_SMTP=smtp://user:password@host:587  ANABRANCH_DIGEST='from@example.org to@example.org,you@example.org'

With both set, a server mails each address at most once a day, and only when there is something to tell; without a server:
``python -m anabranch.serve.feed atlas.sqlite`` does so once, for cron. smtps:// speaks TLS from the start, smtp:// as soon as
the other side can; a password goes over no open line but to this machine.
"""

import os
import smtplib
import sqlite3
import ssl
import sys
import threading
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.message import EmailMessage
from html import escape
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from anabranch.atlas.rows import Row, rows
from anabranch.atlas.status import statuses
from anabranch.errors import InputError, WorkError

TABLES = """
create table if not exists state (row text primary key, status text not null);
create table if not exists event (n integer primary key, row text not null, was text, now text not null, at text not null);
create table if not exists vote (row text not null, voter text not null, at text not null, primary key (row, voter));
create table if not exists mail (address text primary key, day text not null, event integer not null);
create index if not exists vote_of on vote (row);
"""
ATOM = "http://www.w3.org/2005/Atom"  # a name, not a place: nothing is fetched from it
NAME = "tag:anabranch,2026:atlas"
SHOWN = 100  # entries of the Atom document, and rows of a mail
LOCAL = ("localhost", "127.0.0.1", "::1")


class Event(NamedTuple):
    """``was`` None: the row is new; else its status changed. ``at``: UTC, ISO 8601."""

    n: int
    row: str
    was: str | None
    now: str
    at: str

    @property
    def words(self) -> str:
        return f"new, {self.now}" if self.was is None else f"{self.was} → {self.now}"


@dataclass(frozen=True)
class Mail:
    """``server``: smtp://[user:password@]host[:port] or smtps://. InputError for what is not."""

    server: str
    sender: str
    to: tuple[str, ...]

    def __post_init__(self) -> None:
        try:
            url = urlsplit(self.server)
            good = url.scheme in ("smtp", "smtps") and url.hostname and url.port != 0
        except ValueError:
            good = False
        if not good:
            raise InputError("ANABRANCH_SMTP is smtp://user:password@host:587 or smtps://..., got something else")
        for address in (self.sender, *self.to):
            if "@" not in address or not address.isascii() or any(c.isspace() or c in "<>,;" for c in address):
                raise InputError(f"ANABRANCH_DIGEST is 'from@example.org to@example.org,you@example.org', got {address!r}")

    @staticmethod
    def told(environment: Mapping[str, str] = os.environ) -> "Mail | None":
        """What the environment says; None where it says nothing."""
        server, people = environment.get("ANABRANCH_SMTP"), environment.get("ANABRANCH_DIGEST", "").split()
        if not server and not people:
            return None
        if not server or len(people) != 2:
            raise InputError(
                "a digest needs ANABRANCH_SMTP=smtp://host:587 and ANABRANCH_DIGEST='from@example.org to@example.org'"
            )
        return Mail(server, people[0], tuple(a for a in people[1].split(",") if a))

    def send(self, message: EmailMessage) -> None:
        """WorkError names the server, never the password."""
        url = urlsplit(self.server)
        host, safe = url.hostname or "", ssl.create_default_context()
        port = url.port or (465 if url.scheme == "smtps" else 25)
        try:
            implicit = url.scheme == "smtps"
            with (
                smtplib.SMTP_SSL(host, port, timeout=30, context=safe)
                if implicit
                else smtplib.SMTP(host, port, timeout=30) as smtp
            ):
                smtp.ehlo()
                if not implicit and smtp.has_extn("starttls"):
                    smtp.starttls(context=safe)
                    smtp.ehlo()
                elif not implicit and url.username and host not in LOCAL:
                    raise WorkError(f"{host} offers no TLS, and the password goes over no open line: use smtps://")
                if url.username:
                    smtp.login(unquote(url.username), unquote(url.password or ""))
                smtp.send_message(message)
        except (OSError, smtplib.SMTPException) as error:
            raise WorkError(
                f"the mail server {host}:{port} did not take the digest: {type(error).__name__}: {error!s:.200}"
            ) from None


class Feed:
    """The feed kept in one SQLite file; any thread may use it."""

    def __init__(self, file: Path, known: Callable[[], Mapping[str, str]] | None = None) -> None:
        """``known``: row id -> status, the catalogue's unless told. WorkError where the file cannot be used."""
        self.file, self.known = file, known or (lambda: statuses(r.id for r in rows()))
        with self._open() as base:
            base.executescript(TABLES)

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            base = sqlite3.connect(self.file, timeout=10)
            try:
                with base:
                    yield base
            finally:
                base.close()
        except sqlite3.Error as error:
            raise WorkError(f"{self.file} cannot be used ({error}); move it away, or restore it from a copy") from None

    def refresh(self, now: datetime | None = None) -> list[Event]:
        """Compares the catalogue with what was known; returns and keeps what is new or changed."""
        at, there = stamp(now), self.known()
        with self._open() as base:
            base.execute("begin immediate")  # two servers on one file tell each change once
            before = dict(base.execute("select row, status from state"))
            changed = [(id, before.get(id), status) for id, status in there.items() if before.get(id) != status]
            base.executemany("insert into event (row, was, now, at) values (?, ?, ?, ?)", [(*c, at) for c in changed])
            base.executemany("insert or replace into state values (?, ?)", [(id, status) for id, _, status in changed])
            last = base.execute("select coalesce(max(n), 0) from event").fetchone()[0]
        return [Event(last - len(changed) + 1 + i, *c, at) for i, c in enumerate(changed)]

    def events(self, behind: int = 0, most: int = -1) -> list[Event]:
        """The newest first."""
        with self._open() as base:
            found = base.execute("select n, row, was, now, at from event where n > ? order by n desc limit ?", (behind, most))
            return [Event(*each) for each in found]

    def vote(self, row: str, voter: str, up: bool, now: datetime | None = None) -> None:
        """One voter has one vote a row; ``up`` False takes it back."""
        with self._open() as base:
            if up:
                base.execute("insert or ignore into vote values (?, ?, ?)", (row, voter, stamp(now)))
            else:
                base.execute("delete from vote where row = ? and voter = ?", (row, voter))

    def votes(self) -> dict[str, int]:
        with self._open() as base:
            return dict(base.execute("select row, count(*) from vote group by row"))

    def mine(self, voter: str) -> set[str]:
        with self._open() as base:
            return {row for (row,) in base.execute("select row from vote where voter = ?", (voter,))}

    def digest(self, mail: Mail, now: datetime | None = None, base_url: str = "") -> list[str]:
        """Mails what happened since the last digest to those who have had none today; returns their addresses. Raises the first
        failure, behind the others' mails."""
        day, titles = stamp(now)[:10], {r.id: r for r in rows()}
        with self._open() as base:
            had = {address: (d, n) for address, d, n in base.execute("select address, day, event from mail")}
        sent, failed = [], []
        for address in mail.to:
            last_day, last = had.get(address, ("", 0))
            events = self.events(last) if last_day != day else []
            if not events:
                continue
            try:
                mail.send(letter(mail.sender, address, events, titles, self.votes(), day, base_url))
            except WorkError as error:  # the others have theirs all the same
                failed.append(error)
                continue
            sent.append(address)
            with self._open() as base:
                base.execute("insert or replace into mail values (?, ?, ?)", (address, day, events[0].n))
        if failed:
            raise failed[0]
        return sent

    def daily(
        self, mail: Mail, stop: threading.Event, told: Callable[[str], Any], base_url: str = "", every: float = 900.0
    ) -> None:
        """Looks every quarter of an hour, until ``stop``: a server that was down at the hour mails when it is back."""
        while not stop.wait(every):
            try:
                self.refresh()
                self.digest(mail, base_url=base_url)
            except WorkError as error:
                told(str(error))

    def atom(self, base_url: str) -> bytes:
        """The newest events as Atom (RFC 4287). ``base_url``: of the server, with its slash."""
        titles, events = {r.id: r for r in rows()}, self.events(most=SHOWN)
        ET.register_namespace("", ATOM)
        feed = ET.Element(f"{{{ATOM}}}feed")

        def add(to: ET.Element, name: str, text: str = "", **attributes: str) -> None:
            ET.SubElement(to, f"{{{ATOM}}}{name}", attributes).text = text or None

        add(feed, "id", NAME)
        add(feed, "title", "The atlas of anabranch")
        add(feed, "updated", events[0].at if events else stamp(None))
        add(feed, "link", rel="self", href=f"{base_url}atlas.xml")
        add(feed, "link", rel="alternate", href=f"{base_url}atlas")
        for event in events:
            row = titles.get(event.row)
            entry = ET.SubElement(feed, f"{{{ATOM}}}entry")
            add(entry, "id", f"{NAME}/{event.row}/{event.n}")  # stays, wherever the server moves
            add(entry, "title", f"{row.title if row else event.row} ({event.words})")
            add(entry, "updated", event.at)
            add(entry, "link", rel="alternate", href=f"{base_url}atlas/{event.row}")
            add(ET.SubElement(entry, f"{{{ATOM}}}author"), "name", "anabranch")
            add(entry, "category", term=row.family if row else "gone")
            add(entry, "summary", row.idea if row else "")
        return b'<?xml version="1.0" encoding="utf-8"?>\n' + ET.tostring(feed, encoding="utf-8")


def letter(
    sender: str, to: str, events: Sequence[Event], titles: Mapping[str, Row], votes: Mapping[str, int], day: str, base_url: str
) -> EmailMessage:
    """Changed verdicts first, then new rows, those with most votes first; as text and as HTML."""
    changed, new = [e for e in events if e.was is not None], [e for e in events if e.was is None]
    new.sort(key=lambda e: -votes.get(e.row, 0))
    said = [f"{len(part)} {name}" for part, name in ((changed, "changed verdicts"), (new, "new rows")) if part]
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = sender, to, f"The atlas of anabranch, {day}: {', '.join(said)}"
    message["Auto-Submitted"] = "auto-generated"
    text, html = [], []
    for name, part in (("Changed verdicts", changed), ("New rows", new)):
        if not part:
            continue
        text += [name, ""]
        html.append(f"<h2>{name}</h2><ul>")
        for e in part[:SHOWN]:
            row, link = titles.get(e.row), f"{base_url}atlas/{e.row}"
            title, idea, count = (row.title, row.idea, votes.get(e.row, 0)) if row else (e.row, "", 0)
            text += (
                [f"* {title} ({e.words}{f', votes: {count}' if count else ''})", f"  {idea}"]
                + [f"  {link}"] * bool(base_url)
                + [""]
            )
            shown = f'<a href="{escape(link)}">{escape(title)}</a>' if base_url else escape(title)
            html.append(f"<li>{shown} <em>({escape(e.words)}{f', votes: {count}' if count else ''})</em><br>{escape(idea)}</li>")
        more = len(part) - SHOWN
        text += [f"and {more} more", ""] if more > 0 else []
        html.append("</ul>" + (f"<p>and {more} more</p>" if more > 0 else ""))
    message.set_content("\n".join(text))
    message.add_alternative(f"<!doctype html><html lang='en'><body>{''.join(html)}</body></html>", subtype="html")
    return message


def days(events: Sequence[Event]) -> dict[str, list[Event]]:
    """Events by day, the newest day first, each row once a day."""
    out: dict[str, dict[str, Event]] = {}
    for event in sorted(events, key=lambda e: -e.n):
        out.setdefault(event.at[:10], {}).setdefault(event.row, event)
    return {day: list(by.values()) for day, by in out.items()}


def stamp(now: datetime | None) -> str:
    return (now or datetime.now(UTC)).astimezone(UTC).replace(microsecond=0).isoformat().replace("+00:00", "Z")


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code of one digest: 0 sent or nothing to tell, 2 wrong settings, 1 the server failed."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    try:
        mail = Mail.told()
        if mail is None or len(given) != 1:
            raise InputError("usage: ANABRANCH_SMTP=... ANABRANCH_DIGEST=... python -m anabranch.serve.feed FILE.sqlite")
        feed = Feed(Path(given[0]))
        feed.refresh()
        sent = feed.digest(mail)
    except (InputError, WorkError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2 if isinstance(error, InputError) else 1
    sys.stdout.write(f"sent to {len(sent)} of {len(mail.to)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
