"""The pages: every kind's answer is shown, nothing is loaded from elsewhere, no value becomes markup, no path reaches a file."""

import base64
import json
import re
import shutil
import struct
from pathlib import Path
from urllib.parse import quote

import pytest
from engine import _tiny as tiny
from fastapi.testclient import TestClient
from serve import _pages
from serve._html import NASTY, Page

from anabranch.atlas.rows import rows
from anabranch.errors import InputError, WorkError
from anabranch.serve import pages
from anabranch.serve.limits import Busy
from anabranch.serve.show import answer, fired, pieces, row_for, task_of

PLACES = ["/", "/tasks", "/map", "/atlas", "/atlas/daily-papers", "/atlas?q=merge", *(f"/tasks/{n}" for n in tiny.HEADED)]


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    with TestClient(_pages.app(tmp_path_factory.mktemp("feed") / "atlas.sqlite")) as made:
        yield made


def read(client, place: str, status: int = 200) -> tuple[str, Page]:
    found = client.get(place)
    assert found.status_code == status, found.text[:500]
    return found.text, Page(found.text)


# ---- what the pages say


@pytest.mark.parametrize("place", PLACES)
def test_a_page_stands_alone_and_can_be_read_aloud(client, place):
    text, page = read(client, place)
    assert page.all("html")[0]["lang"] == "en" and page.all("title") and len(page.all("h1")) == 1 and len(page.all("main")) == 1
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    labels = {a.get("for") for a in page.all("label")}
    assert {a["id"] for n in ("input", "select", "textarea") for a in page.all(n) if a.get("type") != "hidden"} <= labels
    for name, attributes in page.tags:
        assert not any(k.startswith("on") or k == "style" for k in attributes), (name, attributes)
        for key in ("src", "href", "action"):
            address = attributes.get(key) or ""
            away = re.match(r"(?i)\s*(\w+:|//)", address)
            assert not away or address.startswith("data:") or (name == "a" and address.startswith("https://github.com/")), address
    assert not re.search(r"(?i)@import|url\(", text)


def test_every_task_answers_what_is_typed(client):
    found = client.post("/", data={"text": "the red cat walks near bob", "text_b": "red dog", "choices": "blue sits\nred sees\n"})
    page = Page(found.text)
    assert found.status_code == 200 and len([a for a in page.all("article") if "answer" in a["class"]]) == 7
    assert "7 of 7 tasks" in found.text
    assert re.search(r"<mark[^>]*>cat<b>BEAST</b></mark>", found.text) and re.search(
        r"<mark[^>]*>bob<b>PER</b></mark>", found.text
    )
    row = {"text": "the red cat walks near bob", "text_b": "red dog", "choices": ["blue sits", "red sees"]}
    said = _pages.model().predict(["classify", "pair", "choice"], [row])[0]
    words = [said["classify"]["prediction"], said["pair"]["prediction"], row["choices"][said["choice"]["prediction"]]]
    assert all(f"<b>{word}</b>" in found.text for word in words) and found.text.count("<meter") == 3 + 3 + 2 + 2
    rungs = {n: t["rung"] for n, t in _pages.model().tasks.items()}
    assert found.text.count("its own lora, weight 1.00") == sum(r == "delta" for r in rungs.values())
    assert found.text.count("the frozen backbone, no delta") == sum(r == "probe" for r in rungs.values())
    assert "the red cat walks near bob</textarea>" in found.text


def test_what_a_page_answers_is_what_predict_answers(client):
    text = client.post("/", data={"text": "it is the green one"}).text
    said = _pages.model().predict("classify", [{"text": "it is the green one"}])[0]
    assert f"<b>{said['prediction']}</b>" in text and f"{100 * said['scores']['green']:.1f} %" in text
    assert "pair</a> needs a second text" in text and "choice</a> needs choices" in text and "5 of 7 tasks" in text


@pytest.mark.parametrize("text", ["", "   ", "\n\t"])
def test_an_empty_text_is_asked_for_again(client, text):
    found = client.post("/", data={"text": text})
    assert found.status_code == 422 and 'role="alert">Type a text first.' in found.text


@pytest.mark.parametrize(
    ("raised", "status", "said"),
    [
        (Busy(3), 429, "The queue is full"),
        (InputError("too many <rows>"), 422, "too many &lt;rows&gt;"),
        (WorkError("it broke"), 500, "it broke"),
    ],
)
def test_what_goes_wrong_is_said_on_the_page(tmp_path, raised, status, said):
    app = _pages.app(tmp_path / "f.sqlite")
    app.state.batcher.raises = raised
    found = TestClient(app).post("/", data={"text": "a"})
    assert found.status_code == status and said in found.text
    assert found.headers.get("retry-after") == ("3" if status == 429 else None)


def test_a_body_that_is_too_large_is_refused(tmp_path):
    app = _pages.app(tmp_path / "f.sqlite")
    app.state.limits = app.state.limits._replace(body=100)
    assert TestClient(app).post("/", data={"text": "a" * 200}).status_code == 413


def test_a_form_with_too_many_fields_is_refused(client):
    assert client.post("/", content=b"&".join(b"a%d=1" % i for i in range(99))).status_code == 422


def test_the_table_has_scores_sizes_and_rungs(client):
    text, page = read(client, "/tasks")
    results = tiny.fitted("bert")[1]["tasks"]
    for name, t in results.items():
        assert f'href="/tasks/{name}"' in text and f"{t['test']:.3f}*" in re.sub(r"<[^>]+>", "", text)
    assert sum("sorts" in a.get("class", "") for a in page.all("table")) == 1
    assert len([a for a in page.all("svg") if a.get("class") == "ladder"]) == len(results)


def test_a_task_has_its_curve_its_confusions_and_its_errors(client):
    tasks = tiny.fitted("bert")[1]["tasks"]
    labels = [a.get("aria-label", "") for a in read(client, "/tasks/classify")[1].all("svg")]
    assert any(label.startswith("Learning curve over") for label in labels)
    assert any(label.startswith("Confusion matrix of 3 labels") for label in labels)
    name = next(n for n, t in tasks.items() if t["wrong"])
    assert all(w["text"] in read(client, f"/tasks/{name}")[0] for w in tasks[name]["wrong"])
    assert "has no classes to confuse" in read(client, "/tasks/regress")[0]


def test_the_map_shows_matrix_graph_and_pairs(client):
    text, page = read(client, "/map")
    labels = [a.get("aria-label", "") for a in page.all("svg")]
    assert any(label.startswith("Cosines between 7 tasks") for label in labels) and any(
        "pairs help each other" in label for label in labels
    )
    told = json.loads(re.search(r"<script[^>]*data-matrix>(.*?)</script>", text, re.DOTALL)[1])
    matrix = tiny.fitted("bert")[1]["related"]
    i, j = (matrix["tasks"].index(told["names"][k]) for k in (0, 1))
    found = list(struct.unpack(f"{49}b", base64.b64decode(told["matrix"])))
    assert found[1] / 100 == pytest.approx(matrix["matrix"][i][j], abs=0.006)


def test_a_run_without_results_or_with_other_tasks_is_shown_from_its_records(tmp_path):
    run = tmp_path / "run"
    shutil.copytree(tiny.fitted("bert")[0] / "bundle", run / "bundle")
    client = TestClient(_pages.app(tmp_path / "f.sqlite", run=run))
    assert "7 tasks" in read(client, "/tasks")[0] and "did not measure it" in read(client, "/map")[0]
    assert "Not kept by the version" in read(client, "/tasks/classify")[0]


def test_a_task_that_was_replaced_is_not_shown_with_the_old_results():
    told = tiny.fitted("bert")[1]["tasks"]["classify"]
    record = dict(_pages.model().tasks["classify"])
    assert task_of(told, record)["majority"] == told["majority"]
    other = task_of(told, record | {"test": 0.123})
    assert other["test"] == other[other["chosen"]] == 0.123 and other["majority"] is None and "wrong" not in other


# ---- nobody gets in


@pytest.mark.parametrize(
    "place", ["/atlas?q={}", "/atlas?family={}", "/atlas?sort={}&page={}", "/tasks/{}", "/atlas/{}", "/static/{}"]
)
def test_nothing_from_an_address_becomes_markup(client, place):
    text = client.get(place.replace("{}", quote(NASTY, safe=""))).text
    assert "<script>alert" not in text and "<img src=x" not in text
    if "<html" in text:
        Page(text)


def test_nothing_that_is_typed_becomes_markup(client):
    text = client.post("/", data={"text": NASTY, "text_b": NASTY, "choices": f"{NASTY}\nb"}).text
    Page(text)
    assert "<script>alert" not in text and "<img src=x" not in text and "{{7*7}}" in text
    assert "&lt;/textarea&gt;" in text


def test_nothing_from_a_run_becomes_markup(tmp_path):
    """Names of labels, texts, tasks, descriptions and documents are data from outside."""
    run = tiny.copied(tmp_path / "run")
    results = json.loads((run / "results.json").read_text())
    del results["sum"]
    t = results["tasks"]["classify"]
    t["labels"] = [NASTY + str(i) for i in range(3)]
    t |= {"wrong": [{"text": NASTY, "truth": NASTY, "said": NASTY, "sure": 0.5}], "warnings": [NASTY]}
    results["related"]["tasks"] = [NASTY, *results["related"]["tasks"][1:]]
    results["related"]["measure"] = NASTY
    (run / "results.json").write_text(json.dumps(results))
    client = TestClient(_pages.app(tmp_path / "f.sqlite", run=run))
    for place in ("/tasks", "/tasks/classify", "/map"):
        text, page = read(client, place)
        assert "<script>alert" not in text and "<img src=x" not in text
        assert [a for a in page.all("script") if "src" not in a and a.get("type") != "application/json"] == []


@pytest.mark.parametrize(
    "place",
    ["/static/../pages.py", "/static/..%2fpages.py", "/static/%2e%2e/%2e%2e/cli.py", "/static/style.css/..", "/static//etc/passwd",
     "/tasks/..%2f..%2fetc%2fpasswd", "/atlas/..%2frows.jsonl", "/static/page.js%00", "/tasks/%00"],
)  # fmt: skip
def test_no_path_reaches_the_file_system(client, place):
    found = client.get(place)
    assert found.status_code == 404 and "import" not in found.text and "root:" not in found.text


def test_every_answer_carries_its_policy(client):
    for place in (*PLACES, "/tasks/nope", "/static/style.css", "/atlas.xml"):
        policy = client.get(place).headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy


@pytest.mark.parametrize("headers", [{"origin": "https://evil.example"}, {"sec-fetch-site": "cross-site"}, {"origin": "null"}])
def test_other_sites_cannot_make_a_browser_vote_or_ask(client, headers):
    before = client.get("/atlas/daily-papers").text
    for place, data in (("/", {"text": "a"}), ("/atlas/daily-papers/vote", {"up": "1"})):
        assert client.post(place, data=data, headers=headers).status_code == 403
    assert client.get("/atlas/daily-papers").text == before


def test_a_token_is_asked_for_as_a_password(tmp_path):
    client = TestClient(_pages.app(tmp_path / "f.sqlite", token="päss word"))
    for place in ("/", "/tasks", "/atlas", "/atlas.xml", "/static/style.css"):
        refused = client.get(place)
        assert refused.status_code == 401 and refused.headers["www-authenticate"].startswith("Basic ")
        assert client.get(place, auth=("anyone", "wrong")).status_code == 401
        assert client.get(place, auth=("anyone", "päss word".encode())).status_code == 200
        assert client.get(place, headers={"authorization": b"Bearer " + "päss word".encode()}).status_code == 200
    for said in ("Basic", "Basic !!!", "Basic " + "A" * 5000, "Bearer", "Digest x", "Basic YWJj"):
        assert client.get("/", headers={"authorization": said}).status_code == 401


# ---- the atlas


def titles(text: str) -> list[str]:
    return re.findall(r'<h3 id="t-([\w-]+)">', text)


def test_the_atlas_is_searched_filtered_and_turned(client):
    everything = read(client, "/atlas")[0]
    assert f"{len(rows())} rows, page 1 of" in everything and len(titles(everything)) == pages.PAGE
    found = titles(read(client, "/atlas?q=a+page+of+new+papers+with+votes+and+a+mail+every+day")[0])
    assert "daily-papers" in found[:3], found[:3]
    merges = titles(read(client, "/atlas?family=merge&sort=title")[0])
    known = {r.id: r for r in rows()}
    assert merges and {known[id].family for id in merges} == {"merge"}
    assert merges == sorted(merges, key=lambda id: known[id].title.casefold())
    two = titles(read(client, "/atlas?page=2")[0])
    assert len(two) == pages.PAGE and not set(two) & set(titles(everything))
    for odd in (
        "page=0",
        "page=99999",
        "page=x",
        "page=%C2%B2",
        f"page={'9' * 5000}",
        "family=nope",
        "sort=nope",
        f"q={'a' * 5000}",
        "q=%00",
    ):
        read(client, f"/atlas?{odd}")
    assert "0 rows" in read(client, "/atlas?family=nope")[0]


def test_votes_are_counted_once_and_lead_back_to_where_one_was(tmp_path):
    client = TestClient(_pages.app(tmp_path / "f.sqlite"), follow_redirects=False)
    back = "family=world&sort=votes"
    answered = client.post("/atlas/daily-papers/vote", data={"up": "1", "from": "list", "back": back})
    assert answered.status_code == 303 and answered.headers["location"] == f"/atlas?{back}#daily-papers"
    assert {"HttpOnly", "SameSite=lax"} <= set(answered.headers["set-cookie"].split("; "))
    client.post("/atlas/daily-papers/vote", data={"up": "1"})
    text = client.get(f"/atlas?{back}").text
    assert titles(text)[0] == "daily-papers" and "votes: 1" in text and 'aria-pressed="true"' in text
    other = TestClient(client.app, follow_redirects=False)
    other.post("/atlas/daily-papers/vote", data={"up": "1"})
    assert "votes: 2" in other.get("/atlas/daily-papers").text
    other.post("/atlas/daily-papers/vote", data={"up": "0"})
    assert "votes: 1" in other.get("/atlas/daily-papers").text
    away = client.post("/atlas/daily-papers/vote", data={"up": "1", "from": "list", "back": "//evil.example/?a=b"})
    assert away.headers["location"].startswith("/atlas?")
    assert client.post("/atlas/nope/vote", data={"up": "1"}).status_code == 404


def test_a_forged_cookie_is_no_voter(tmp_path):
    client = TestClient(_pages.app(tmp_path / "f.sqlite"), cookies={"voter": "x' or 1=1"})
    assert 'aria-pressed="true"' not in client.get("/atlas/daily-papers").text


def test_a_row_shows_what_is_known_and_its_history(client):
    text, _ = read(client, "/atlas/daily-papers")
    row = next(r for r in rows() if r.id == "daily-papers")
    assert row.title in text and "History" in text and "new, " in text
    assert "did you mean daily-papers" in read(client, "/atlas/daily-paper", 404)[0]


def test_the_feed_is_atom(client):
    found = client.get("/atlas.xml")
    assert found.headers["content-type"] == "application/atom+xml" and found.content.startswith(b"<?xml")
    assert b"http://testserver/atlas/" in found.content


def test_a_run_that_cannot_be_written_still_takes_votes(tmp_path, caplog):
    client = TestClient(_pages.app(tmp_path / "nowhere" / "f.sqlite"))
    assert "votes last until the server stops" in caplog.text
    client.post("/atlas/daily-papers/vote", data={"up": "1"})
    assert "votes: 1" in client.get("/atlas/daily-papers").text


# ---- what an answer becomes


def test_words_of_one_entity_stand_together():
    labels = ["O", "B-PER", "I-PER", "B-PER", "O", "O", "I-LOC"]
    assert pieces(list("abcdefg"), labels, [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3]) == [
        ("a", None, 0.9), ("b c", "PER", 0.7), ("d", "PER", 0.6), ("e f", None, 0.4), ("g", "LOC", 0.3),
    ]  # fmt: skip
    assert pieces(["a", "b"], ["NOUN", "NOUN"], [1, 1]) == [("a", "NOUN", 1), ("b", "NOUN", 1)]


def test_a_form_becomes_a_row_that_every_kind_reads():
    assert row_for({"text": "Don't go, Ann!"})["tokens"] == ["Don't", "go", ",", "Ann", "!"]
    assert row_for({"text": "a", "choices": " x \n\n y "})["choices"] == ["x", "y"] and row_for({}) == {}


def test_numbers_and_texts_are_shown_as_they_are():
    class Served:
        name, record, corpus, kind = "a", {"kind": "regress"}, None, None

    assert answer(Served, {"prediction": 3.14159, "scores": 3.14159}, {})["said"] == "3.142"
    assert answer(Served, {"prediction": [1.0, 2.5], "scores": [1.0, 2.5]}, {})["said"] == "1, 2.5"
    Served.record = {"kind": "generate"}
    assert answer(Served, {"prediction": "a text", "scores": "a text"}, {})["said"] == "a text"


def test_gates_that_weighed_slots_are_shown(tmp_path, monkeypatch):
    weighed = [{"slot": "expert 2", "weight": 0.75}, {"slot": "expert 1", "weight": 0.245}, {"slot": "expert 3", "weight": 0.005}]
    assert fired(_pages.model(), "classify", {}, weighed) == [("expert 2", 0.75), ("expert 1", 0.245)]
    assert fired(_pages.model(), "classify", None, weighed) == []
    app = _pages.app(tmp_path / "f.sqlite")
    monkeypatch.setattr(pages.gates, "fired", lambda model, served, row: weighed)
    monkeypatch.setattr(type(app.state.model.banks[0].gate), "plain", False)
    text = TestClient(app).post("/", data={"text": "a"}).text
    assert "expert 2, weight 0.75; expert 1, weight 0.24" in text


def test_the_digest_runs_with_the_server(tmp_path, monkeypatch):
    called = []
    monkeypatch.setattr(pages.Feed, "daily", lambda self, mail, stop, told: called.append((mail, stop)))
    mail = pages.Mail("smtp://localhost", "a@b.c", ("d@e.f",))
    with TestClient(_pages.app(Path(tmp_path) / "f.sqlite", mail=mail)):
        pass
    assert called[0][0] == mail and called[0][1].is_set()


def test_the_server_has_the_pages(tmp_path):
    """Behind the batcher, beside the routes of programs, which they leave out of the documentation."""
    from anabranch.serve.app import create_app

    with TestClient(create_app(tiny.copied(tmp_path / "run"), token="t")) as client:
        assert client.get("/").status_code == client.get("/v1/tasks").status_code == 401
        client.auth = ("", "t")
        text = client.post("/", data={"text": "the red cat walks near bob", "text_b": "red", "choices": "a\nb"}).text
        assert "7 of 7 tasks" in text and "<b>PER</b>" in text
        assert (
            client.get("/tasks/tag").status_code == client.get("/map").status_code == client.get("/atlas.xml").status_code == 200
        )
        assert not {"/", "/tasks", "/map", "/atlas"} & set(client.get("/openapi.json").json()["paths"])
        client.auth, bearer = None, {"authorization": "Bearer t"}
        assert client.delete("/v1/tasks/tag", headers=bearer).status_code == 204
        client.auth = ("", "t")
        assert client.get("/tasks/tag").status_code == 404 and "6 tasks" in client.get("/tasks").text
    assert (tmp_path / "run" / "atlas.sqlite").is_file()
