"""Reading HTML: the tags of a page, and a text that would become one."""

from html.parser import HTMLParser

NASTY = "</textarea></script><script>alert(1)</script><img src=x onerror=alert(2)>\"'{{7*7}}"
VOID = {"meta", "link", "input", "img", "br", "hr", "source", "path", "line", "rect", "circle"}


class Page(HTMLParser):
    """Tags with their attributes; complains about tags that do not fit."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            while self.open[-1] in ("p", "li", "option", "tr", "td", "th") and self.open[-1] != tag:
                self.open.pop()
            assert self.open.pop() == tag, tag

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]
