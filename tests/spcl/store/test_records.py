import hashlib
import json
import math

import pytest

from spcl.errors import DataError
from spcl.store import records

# Frozen examples of every version.  The checksum was computed with sha256sum:
#   printf '%s' '{"name":"Stra\\u00dfe","schema":2,"seed":0,"shares":[0.1,1]}' | sha256sum
V1 = {"schema": 1, "table": [], "seed": 0}
V2 = {
    "schema": 2,
    "name": "Straße",
    "seed": 0,
    "shares": [0.1, 1],
    "checksum": "76b80f1b287cbe69f844f8a7860daafb1f1b12dfedcff3c311047adbdfe94bf9",
}
WAY_OUT = "remove it"


def write(path, value):
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def test_the_frozen_example_of_schema_1_is_read_as_the_present_schema(tmp_path):
    assert records.read(write(tmp_path / "a", V1), WAY_OUT) == V1 | {"schema": 2}


def test_the_frozen_example_of_schema_2_is_read(tmp_path):
    assert records.read(write(tmp_path / "a", V2), WAY_OUT) == V2
    with pytest.raises(DataError, match="was altered"):
        records.read(write(tmp_path / "a", V2 | {"seed": 1}), WAY_OUT)


def test_every_older_version_is_upgraded_without_being_changed_in_place():
    examples = {V1["schema"], V2["schema"]}
    assert examples == {*records.UPGRADES, records.SCHEMA}  # else one is missing above
    before = dict(V1)
    records.UPGRADES[1](before)
    assert before == V1


def test_no_flip_of_one_bit_makes_a_checked_version_an_unchecked_one():
    def distance(one, other):
        one, other = str(one).encode(), str(other).encode()
        return sum((a ^ b).bit_count() for a, b in zip(one, other, strict=True))

    checked = {*records.UPGRADES, records.SCHEMA} - {records.UNCHECKED}
    assert checked and all(distance(records.UNCHECKED, version) > 1 for version in checked)
    assert distance(1, 3) == 1  # the number that must be left out


def test_what_is_written_is_read_again(tmp_path):
    value = {"a": (1, 2), "b": {3: math.pi}, "c": "ü", "d": 1e-300, "e": None, "schema": 1}
    records.write(tmp_path / "a", value)
    found = records.read(tmp_path / "a", WAY_OUT)
    assert found["a"] == [1, 2] and found["b"] == {"3": math.pi} and found["schema"] == 2
    content = {key: item for key, item in found.items() if key != "checksum"}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    assert found["checksum"] == hashlib.sha256(text.encode()).hexdigest()
    records.write(tmp_path / "b", found)  # of what was read: the same file
    assert (tmp_path / "b").read_bytes() == (tmp_path / "a").read_bytes()


def test_a_number_that_is_none_is_kept(tmp_path):
    """Validators of a network that has diverged."""
    records.write(tmp_path / "a", {"validators": {"infomax": math.nan}})
    assert math.isnan(records.read(tmp_path / "a", WAY_OUT)["validators"]["infomax"])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b'{"schema": 2, "a', "is not valid JSON, it is cut"),
        (b'{"schema": 1}}', "is not valid JSON"),
        (b"\xff\xfe{", "is not UTF-8"),
        ('{"schema": 1}'.encode("utf-16"), "is not UTF-8"),
        (b"[" * 100_000, "is not valid JSON"),
        (b'{"schema": 1, "a": 1, "a": 2}', "the key 'a' stands twice"),
        (b'{"schema": 1, "a": {"b": 1, "b": 1}}', "the key 'b' stands twice"),
        (b'{"a": ' + b"9" * 5000 + b"}", "is not valid JSON"),
        (b"[]", "is no record: it holds a list"),
        (b'"text"', "is no record: it holds a text"),
        (b"3", "is no record: it holds a number"),
        (b"null", "is no record: it holds null"),
        (b"{}", "has schema None"),
        (b'{"schema": true}', "has schema True"),
        (b'{"schema": 1.0}', "has schema 1.0"),
        (b'{"schema": "2"}', "has schema '2'"),
        (b'{"schema": 99}', "has schema 99, this version of spcl reads 1 and 2; use the version"),
        (b'{"schema": 2}', "its content does not match its checksum"),
        (b'{"schema": 2, "checksum": 3}', "its content does not match its checksum"),
        (b'{"schema": 1, "checksum": "a"}', "its content does not match its checksum"),
    ],
)
def test_a_damaged_record_is_named_with_what_is_wrong_and_the_way_out(tmp_path, content, said):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(DataError) as error:
        records.read(path, WAY_OUT)
    message = str(error.value)
    assert message.startswith(f"{path} ") and message.endswith("remove it")
    assert said in message and "\n" not in message


def test_a_missing_record_and_a_folder_in_its_place_are_named(tmp_path):
    with pytest.raises(records.MissingRecord, match=f"{tmp_path}/a is missing; remove it"):
        records.read(tmp_path / "a", WAY_OUT)
    (tmp_path / "a").mkdir()
    with pytest.raises(DataError, match=f"{tmp_path}/a cannot be read .Is a directory.; remove"):
        records.read(tmp_path / "a", WAY_OUT)
    with pytest.raises(DataError, match=f"{tmp_path}/a must be a file"):
        records.write(tmp_path / "a", {})


def test_soundness_asks_for_a_checksum_only_where_there_was_one(tmp_path):
    sealed = json.dumps(records.seal({"a": 1}))
    assert records.is_sound(sealed.encode()) and records.is_sound(b'{"a": 1}')
    assert records.is_sound(b'{"schema": 1}')
    for damaged in ('"checksum"', '"schema"', '"a": 1', "{"):
        assert not records.is_sound(sealed.replace(damaged, damaged[:-1] + "~", 1).encode())
    for other in (b"[]", b"", b"\xff", b'{"schema": 2}'):
        assert not records.is_sound(other)
