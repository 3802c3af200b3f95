"""A parser of HTML pages for tests."""

from html.parser import HTMLParser

VOID = {"meta", "img", "br", "path", "use"}


class ParsedPage(HTMLParser):
    """Tags, attributes and text of a page that loads and runs nothing, its elements all closed in order."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.text, self.handlers = [], [], "", []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.handlers += [name for name, _ in attributes if name.startswith("on")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]
