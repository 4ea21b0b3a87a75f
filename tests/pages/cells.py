"""The tables of a page."""

import html.parser


class Cells(html.parser.HTMLParser):
    """The texts of the cells of each row, and all tags and attributes."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.tags, self.attributes, self._is_cell = [], set(), set(), False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        self._is_cell = tag in ("td", "th")

    def handle_endtag(self, tag):
        self._is_cell = False

    def handle_data(self, data):
        if self._is_cell:
            self.rows[-1][-1] += data
