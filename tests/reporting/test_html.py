"""Tests of HTML pages: they are self-contained, escape all text, and keep the order of their blocks."""

import base64
import html.parser
import re

from pneumojax.reporting.html import Picture, Section, load_picture, render_page
from pneumojax.reporting.tables import Table

PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


class _Balance(html.parser.HTMLParser):
    """Checks that each element has a closing tag."""

    def __init__(self):
        super().__init__()
        self.open = []

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def make_page():
    picture = Picture(PIXEL, "a <dot>", "one pixel")
    table = Table(("metric", "value"), (("AUROC", "0.9 & more"),), "a caption")
    blocks = (picture, picture, table, Picture(b"<svg/>", "drawing", wide=True))
    sections = [Section(f"Part {i}", ("5 < 6",), blocks) for i in range(4)]
    return render_page("<Title>", ["first", "second"], sections, warning="Synthetic, not real.")


def test_a_page_is_well_formed_and_needs_no_other_file():
    page = make_page()
    balance = _Balance()
    balance.feed(page)
    assert balance.open == []
    assert re.findall(r'(?:src|href)="(?!data:|#)', page) == []
    assert "data:image/png;base64,iVBOR" in page and "data:image/svg+xml;base64," in page


def test_all_text_is_escaped():
    page = make_page()
    for escaped in ("&lt;Title&gt;", "5 &lt; 6", "0.9 &amp; more", "a &lt;dot&gt;"):
        assert escaped in page
    assert "<Title>" not in page and "<dot>" not in page


def test_pictures_that_follow_each_other_share_a_row_and_tables_part_them():
    assert make_page().count('<div class="pictures">') == 2 * 4


def test_a_picture_is_shown_beside_the_same_picture_with_a_map():
    picture = Picture(PIXEL, "a <dot>", "one pixel", overlay=b"<svg/>")
    page = render_page("t", (), [Section("one", blocks=[picture, Picture(PIXEL, "b")])])
    pair = re.findall(r'<figure class="pair">(.*?)</figure>', page)
    assert len(pair) == 1 and re.findall(r'data:(\S+);base64,\S+" alt="(.*?)"', pair[0]) == [
        ("image/png", "a &lt;dot&gt;"),
        ("image/svg+xml", "Map on a &lt;dot&gt;"),
    ]
    assert page.count("<img") == 3


def test_only_long_pages_list_their_parts():
    assert "<nav>" in make_page()
    assert "<nav>" not in render_page("t", (), [Section("one")])


def test_pictures_are_read_from_files(tmp_path):
    (tmp_path / "dot.png").write_bytes(PIXEL)
    assert load_picture(tmp_path / "dot.png", "dot") == Picture(PIXEL, "dot")


def test_intervals_in_cells_do_not_break():
    page = render_page("t", (), [Section("s", (), [Table(("a", "b"), [("x", "sensitivity 0.9 ± 0.1 (0.8 to 1.0)")])])])
    assert "0.9\u00a0±\u00a00.1 (0.8\u00a0to\u00a01.0)" in page
