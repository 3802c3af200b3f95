"""Tables as people and programs write them: the same data is the same in every format."""

import decimal
import gzip
import io
import json

import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vision.errors import ManifestError
from vision.tables import get_table_format, open_table

cells = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**53), 2**53),
    st.text(st.characters(exclude_categories=("C",)), max_size=9),
)


def read(path, *names, paths=()) -> list[dict[str, str]]:
    return [row for batch in open_table(str(path)).read(names, paths=paths) for row in batch.to_pylist()]


def write(path, data: bytes):
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("name", "format_"),
    [
        ("m.csv", "csv"),
        ("b.CSV", "csv"),
        ("s3://x/part-0.snappy.parquet", "parquet"),
        ("m.jsonl.gz", "jsonl"),
        ("m.CSV.GZ", "csv"),
        ("m.parquet.gz", None),
        ("m.xlsx", None),
        ("csv", None),
    ],
)
def test_formats_are_known_by_the_ending(name, format_):
    assert get_table_format(name) == format_


@pytest.mark.parametrize("ending", ["csv", "csv.gz", "jsonl", "jsonl.gz", "parquet"])
def test_what_pandas_writes_reads_alike(tmp_path, ending):
    frame = pd.DataFrame(
        {"id": [17, None, 18], "photo": ["1.0", "b", "c"], "brand": ["Acme", None, "資生堂"], "price": [0.5, 2.0, None]}
    )
    path = tmp_path / f"m.{ending}"
    writer = {"c": frame.to_csv, "j": frame.to_json, "p": frame.to_parquet}[ending[0]]
    writer(path, **({"orient": "records", "lines": True} if ending[0] == "j" else {"index": False}))
    assert read(path, "id", "photo", "brand", "price", paths=["photo"]) == [
        {"id": "17", "photo": "1.0", "brand": "Acme", "price": "0.5"},
        {"id": "", "photo": "b", "brand": "", "price": "2"},
        {"id": "18", "photo": "c", "brand": "資生堂", "price": ""},
    ]


@pytest.mark.parametrize("text", ["NaN", "nan"])
def test_nan_is_not_known_as_text_too(tmp_path, text):
    csv = write(tmp_path / "m.csv", f"id,photo\n{text},{text}\n".encode())
    jsonl = write(tmp_path / "m.jsonl", b'{"id": NaN, "photo": "%b"}\n' % text.encode())
    pyarrow.parquet.write_table(pa.table({"id": [float("nan")], "photo": [text]}), tmp_path / "m.parquet")
    for path in (csv, jsonl, tmp_path / "m.parquet"):
        assert read(path, "id", "photo", paths=["photo"]) == [{"id": "", "photo": ""}]


@given(st.lists(st.tuples(cells, cells), min_size=1, max_size=9))
def test_json_lines_and_parquet_agree(tmp_path_factory, written):
    folder = tmp_path_factory.mktemp("t")
    lines = [json.dumps({"a": a, "b": b}, ensure_ascii=False) for a, b in written]
    jsonl = write(folder / "m.jsonl", "\n".join(lines).encode())
    # A column of Parquet has one type: each value of its own table.
    for number, (a, b) in enumerate(written):
        pyarrow.parquet.write_table(pa.table({"a": [a], "b": [b]}), folder / "m.parquet")
        assert read(folder / "m.parquet", "a", "b") == read(jsonl, "a", "b")[number : number + 1]


@pytest.mark.parametrize(
    ("column", "said"),
    [
        (pa.array([decimal.Decimal("17.00")]), "17"),
        (pa.array([2.5], pa.float32()), "2.5"),
        (pa.array([-3.0]), "-3"),
        (pa.array([1e300]), "1e+300"),
        (pa.array([True]), "true"),
        (pa.array(["a"]).dictionary_encode(), "a"),
        (pa.array([None], pa.string()).dictionary_encode(), ""),
        (pa.array([None]), ""),
        (pa.array([b"binary text"]), "binary text"),
        (pa.array([1_790_000_000], pa.timestamp("s")), "2026-09-21 14:13:20.000"),
        (pa.array(["10.0.0.0"]), "10.0.0.0"),
    ],
)
def test_typed_values_become_text(tmp_path, column, said):
    pyarrow.parquet.write_table(pa.table({"a": column}), tmp_path / "m.parquet")
    assert read(tmp_path / "m.parquet", "a") == [{"a": said}]


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp932"])
def test_a_csv_as_excel_writes_it(tmp_path, separator, encoding, caplog):
    rows = [["商品ID", "画像", "説明"], ["17", "写真/1.jpg", "二行\r\nの, ;説明\t"], ["18", "写真/2.jpg", '"靴"']]
    text = "\r\n".join(separator.join('"' + cell.replace('"', '""') + '"' for cell in row) for row in rows) + "\r\n"
    path = write(tmp_path / "m.csv", text.encode(encoding))
    assert open_table(str(path)).columns == ("商品ID", "画像", "説明")
    assert read(path, "画像", "説明", "商品ID") == [
        {"画像": "写真/1.jpg", "説明": rows[1][2], "商品ID": "17"},
        {"画像": "写真/2.jpg", "説明": '"靴"', "商品ID": "18"},
    ]
    assert ("is read as cp932" in caplog.text) == (encoding == "cp932")


def test_an_encoding_is_taken_as_it_is_given(tmp_path):
    path = write(tmp_path / "m.csv", "id;brand\n1;Société\n".encode("cp1252"))
    table = open_table(str(path), encoding="cp1252")
    assert [batch.to_pylist() for batch in table.read(["brand"])] == [[{"brand": "Société"}]]
    with pytest.raises(ManifestError, match="encoding 'cp99' is not known"):
        open_table(str(path), encoding="cp99")


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("m.csv", b"id\n\xff\xff\n", "cannot be read.*save it as UTF-8"),
        ("m.csv", b"id\n" + b"x\n" * 600_000 + b"\xe9\n", "cannot be read"),
        ("m.csv", b"", "no row with the names"),
        ("m.csv", b"id,id\n1,2\n", "column 'id' stands twice"),
        ("m.csv", b"id,b\n1,2,3\n", "cannot be read.*Expected 2 columns, got 3"),
        ("m.csv.gz", b"id\n1\n", "cannot be read"),
        ("m.csv.gz", gzip.compress(b"id\n" + bytes(range(32, 120)) * 999)[:200], "cannot be read"),
        ("m.jsonl", b'{"id": 1}\n{"id": \n', "line 2 is not JSON"),
        ("m.jsonl", b'{"id": ' + b"[" * 100_000, "line 1 is not JSON"),
        ("m.jsonl", b"[1]\n", "line 1 is not an object"),
        ("m.jsonl", b'{"id": [1]}\n', r"column 'id' has \[1\], which is no text"),
        ("m.parquet", b"no parquet", "cannot be read"),
        ("m.xlsx", b"", "its ending is not one of"),
    ],
)
def test_a_table_that_cannot_be_read_is_named(tmp_path, name, data, said):
    with pytest.raises(ManifestError, match=said) as caught:
        read(write(tmp_path / name, data), "id")
    assert str(tmp_path / name) in str(caught.value)


def test_values_that_are_no_text_are_refused(tmp_path):
    out = io.BytesIO()
    pyarrow.parquet.write_table(pa.table({"a": [[1, 2]], "b": [b"\xff"]}), out)
    path = write(tmp_path / "m.parquet", out.getvalue())
    with pytest.raises(ManifestError, match=r"column 'a' holds list.*; give text or numbers"):
        read(path, "a")
    with pytest.raises(ManifestError, match="Invalid UTF8"):
        read(path, "b")
    text = pa.Array.from_buffers(pa.string(), 1, pa.array([b"\xff"]).buffers())
    pyarrow.parquet.write_table(pa.table({"a": text}), tmp_path / "text.parquet")
    with pytest.raises(ManifestError, match="Invalid UTF8"):
        read(tmp_path / "text.parquet", "a")


def test_lines_of_json_may_leave_out_what_they_do_not_know(tmp_path):
    path = write(tmp_path / "m.jsonl", b'\xef\xbb\xbf{"id": 1}\n\n{"id": 2, "brand": "Acme"}\n')
    assert open_table(str(path)).columns == ("id", "brand")
    assert read(path, "id", "brand") == [{"id": "1", "brand": ""}, {"id": "2", "brand": "Acme"}]


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_columns_come_in_the_order_that_was_asked_for(tmp_path, ending):
    frame = pd.DataFrame({"a": ["1"], "b": ["2"], "c": ["3"]})
    path = str(tmp_path / f"m.{ending}")
    {"csv": frame.to_csv, "jsonl": frame.to_json, "parquet": frame.to_parquet}[ending](
        path, **({"orient": "records", "lines": True} if ending == "jsonl" else {"index": False})
    )
    (batch,) = open_table(path).read(["c", "a"])
    assert (batch.schema.names, [column[0].as_py() for column in batch.columns]) == (["c", "a"], ["3", "1"])


def test_a_missing_table_is_named(tmp_path):
    with pytest.raises(ManifestError, match=r"none\.csv cannot be read"):
        open_table(str(tmp_path / "none.csv"))
