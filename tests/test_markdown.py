"""What a report's Markdown, and the page made of it, do with the marks that its data hold."""

from eval.analysis.intervals import Interval
from eval.pages.markdown import head, row
from eval.pages.page import body


def test_a_bar_in_a_name_is_no_end_of_a_cell():
    table = f"{head('a|b', 'mean')}\n{row('c|d', Interval(1.0, 0.5, 2.0))}\n{row(None, 3)}\n"
    assert table == "| a\\|b | mean |\n|---|---|\n| c\\|d | 1.00 [0.50, 2.00] |\n| none | 3 |\n"
    html = body(table, {})["header"]
    assert ">a|b</th>" in html and ">c|d</th>" in html and html.count("<tr>") == 3


def test_what_looks_like_an_image_in_the_data_is_text():
    shown = body("![of us](ours.png)\n\n![<b>](theirs.png)\n\ndata ![](x.png) here\n", {"ours.png": "data:,"})["header"]
    assert shown.count("<img") == 1 and 'src="data:,"' in shown
    assert "<p>![&lt;b&gt;](theirs.png)</p>" in shown and "<p>data ![](x.png) here</p>" in shown
