import dataclasses

from markupsafe import escape

from tests.support.helpers import create_scene, create_small_taxonomy, encode_image
from tests.support.pages import ParsedPage
from tests.support.two_models import create_listings, model
from training.comparison.compare import compare
from training.comparison.gate import Gate
from training.comparison.html_report import render_comparison
from training.comparison.text_report import ComparedModels, GateVerdict, build_comparison_json
from training.reporting.field_titles import format_field_title
from vision.taxonomy import Brand

HOSTILE = "<script>alert('x')</script>\"&"


def hostile_taxonomy():
    plain = create_small_taxonomy()
    return dataclasses.replace(
        plain,
        version=HOSTILE,
        categories=tuple(dataclasses.replace(c, names={"en": f"{HOSTILE} {c.id}"}) for c in plain.categories),
        brands=tuple(Brand(id=b.id, names={"en": f"{HOSTILE} {b.id}"}) for b in plain.brands),
    )


def render_page(folder, *, max_shown=10, gate=None):
    (folder / f"{HOSTILE.replace('/', '')}0.jpg").write_bytes(
        encode_image(create_scene(90, 60))
    )  # the others are missing
    taxonomy = hostile_taxonomy()
    a, b = model(taxonomy), model(taxonomy)
    rows = [("gala", "acme", ("gala", 1), ("fuji", 2))] * 3 + [("lemon", f"{HOSTILE}unknown", "fuji", "lemon")]
    rows.append((f"{HOSTILE}nowhere", "", "gala", "gala"))
    listings = create_listings(rows, a, b, photo=f"{folder}/{HOSTILE.replace('/', '')}{{}}.jpg")
    listings = dataclasses.replace(listings, listing_ids=tuple(f"{HOSTILE}{i}" for i in listings.listing_ids))
    compared = ComparedModels(
        name_a=HOSTILE,
        name_b=HOSTILE,
        taxonomy_a=HOSTILE,
        taxonomy_b=HOSTILE,
        manifest=HOSTILE,
        manifest_sha256="ab12",
        split=HOSTILE,
        date="2026-11-28",
    )
    comparison = compare(a, b, listings)
    verdict = GateVerdict(gate=gate, rules=gate.check(comparison)) if gate else None
    return render_comparison(compared, comparison, listings, verdict, max_shown=max_shown)


def test_hostile_names_are_shown_and_not_run(tmp_path):
    text = render_page(tmp_path, gate=Gate(min_category_listings=1))
    page = ParsedPage(text)
    assert not {"link", "iframe"} & {tag for tag, _ in page.tags}
    assert text.count("<script") == 1
    assert "<script>alert" not in text
    for shown in ("gala", "nowhere", "l0"):
        assert f"{escape(HOSTILE)}{' ' if shown == 'gala' else ''}{shown}" in text
    sources = [attrs["src"] for _, attrs in page.tags if "src" in attrs]
    assert sources
    assert all(source.startswith("data:image/jpeg;base64,") for source in sources)
    assert all(attrs["alt"] for tag, attrs in page.tags if tag == "img")
    assert all(attrs["href"].startswith("#") for _, attrs in page.tags if "href" in attrs)


def test_lost_and_won_are_apart_and_every_link_has_its_place(tmp_path):
    text = render_page(tmp_path)
    page = ParsedPage(text)
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert ids == ["verdict", "category-lost", "category-won", "brand-lost", "glossary"]  # no brand was won
    assert [attrs["href"][1:] for _, attrs in page.tags if "href" in attrs] == ["glossary", *ids[1:4]]
    lost, won = text.index('id="category-lost"'), text.index('id="category-won"')
    assert text[lost:won].count("<li") == 3
    assert text[won : text.index('id="brand-lost"')].count("<li") == 1
    assert text[lost:won].count("cannot be shown") == 2  # two of the three photos are gone
    assert "Labels that are not compared" in text
    assert "2 categories compared" in text


def test_what_does_not_fit_is_said(tmp_path):
    text = render_page(tmp_path, max_shown=1)
    assert sum(tag == "li" for tag, _ in ParsedPage(text).tags) == 3
    assert "3 listings, the most confident mistakes first; the first 1 are shown, compare.json has all." in text


def test_the_verdict_stands_first_then_the_gate_in_words(tmp_path):
    text = render_page(tmp_path, gate=Gate())
    first = "B may not replace A: it does not keep the gate's rule for the leaf accuracy and the brand accuracy."
    assert text.index(first.replace("'", "&#39;")) < text.index("Gate not passed") < text.index("Accuracy per listing")
    assert '<th scope="row">Leaf category</th>' in text
    assert "The leaf accuracy may fall by at most 0 points" in text
    assert '<h2 id="gate">' not in render_page(tmp_path)


def test_every_figure_on_the_page_is_in_the_json():
    a, b = model(create_small_taxonomy(), thresholds={"category_depth_1": 0.5}), model(create_small_taxonomy())
    rows = [("gala", "acme", ("gala", 1), ("gala", 1))] * 5 + [("gala", "acme", ("gala", 1), ("fuji", 1))] * 2
    listings = create_listings([*rows, ("lemon", "acme", ("gala", 1), ("lemon", 1))], a, b)
    comparison = compare(a, b, listings)
    verdict = GateVerdict(gate=Gate(), rules=Gate().check(comparison))
    compared = ComparedModels(**dict.fromkeys((field.name for field in dataclasses.fields(ComparedModels)), "x"))
    figures = build_comparison_json(compared, comparison, listings, verdict)
    text = render_comparison(compared, comparison, listings, verdict, max_shown=10)
    named = {format_field_title(name): field for name, field in figures["fields"].items()}
    named |= {
        one["name"].replace(">", "&gt;"): one for one in figures["categories"] if one["num_lost"] + one["num_won"]
    }
    for title, one in named.items():
        low, high = (f"{100 * end + 0.0:+.1f}" for end in one["interval"])
        cells = [
            one["num_listings"],
            f"{one['accuracy_a']:.1%}",
            f"{one['accuracy_b']:.1%}",
            f"{100 * one['change'] + 0.0:+.1f}",
        ]
        cells += [f"{low} to {high}", one["num_lost"], one["num_won"], f"{one['p_value']:.3g}"]
        cells += [f"{one['p_holm']:.3g}"] if "p_holm" in one else []
        row = "".join(f"<td>{cell}</td>" for cell in cells)
        assert f'<tr><th scope="row">{title}</th>{row}</tr>' in text
    filled = figures["coverage"]["category_depth_1"]["a"]
    cells = f"<td>{filled['coverage']:.1%}</td><td>{filled['precision']:.1%}</td><td>{1 - filled['alpha']:.0%}</td>"
    assert f'<tr><th scope="row">Category, depth 1</th>{cells}' in text
    for rule in figures["gate"]["rules"]:
        assert f"<td>{'<br>'.join(rule['details']).replace(' > ', ' &gt; ')}</td>" in text
    assert "category_depth" not in text
