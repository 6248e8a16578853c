"""Published figures: beside ours where the setting is one, apart and labelled where it is not."""

import pytest
from make_records import BANK, TRANSFER, WHITE_BOX, make, outcome, zero_shot

from tests.test_layouts import listed
from tools import published, report
from tools.tables import build_tables

SAME = {
    "dataset": "EuroSAT", "backbone": "ViT-B/16", "shots": -1, "epochs": 100,
    "train_threat": BANK | {"alpha": "1/255"}, "config": {},
    "attacks": [TRANSFER | {"alpha": "0.5/255", "start": "one_sided"} | outcome(50),
                WHITE_BOX | outcome(1)],
}  # fmt: skip


def beside(*made):
    (table,) = build_tables(listed(made))
    return published.beside(table)


def test_the_same_setting_stands_in_one_row():
    untrained = {key: SAME[key] for key in ("dataset", "backbone", "attacks", "config")}
    sheet = beside(make(**SAME), make(**SAME | {"trainer": "APD"}), zero_shot(**untrained))
    (block,) = sheet.blocks
    assert [row[0] for row in block.rows] == ["ZeroshotCLIP", "AdvPT"]
    assert [column.heading for column in block.columns[3:]] == [
        "clean ours", "clean published",
        "transfer PGD-40 16/255 (embedding-KL) ours",
        "transfer PGD-40 16/255 (embedding-KL) published",
    ]  # fmt: skip
    assert block.rows[1][3:] == ["80.0", "68.1", "50.0", "55.4"]


OTHER = {
    "backbone": {"backbone": "tiny"}, "local weights": {"backbone": "file:ViT-B-16.pt"},
    "data": {"dataset": "Caltech101"}, "shots": {"shots": 16}, "epochs": {"epochs": 50},
    "subset": {"subset": 100}, "trainer": {"trainer": "CoOp"},
    "training": {"train_threat": BANK | {"eps": "4/255"}}, "clean": {"train_threat": None},
}  # fmt: skip


@pytest.mark.parametrize("changes", OTHER.values(), ids=OTHER)
def test_another_setting_never_does(changes):
    assert beside(make(**SAME)) and not beside(make(**SAME | changes))


def test_another_attack_leaves_the_clean_figure():
    attacks = [SAME["attacks"][0] | {"start": "uniform"}]
    sheet = beside(make(**SAME | {"attacks": attacks}))
    assert [column.group for column in sheet.blocks[0].columns[3:]] == ["clean", "clean"]


@pytest.mark.parametrize("style", report.WRITERS)
def test_papers_tables_are_apart_and_say_so(style, tmp_path):
    from trainers import records

    records.write_record(tmp_path, make())
    plain, _ = report.render([str(tmp_path)], style)
    text, _ = report.render([str(tmp_path)], style, paper=True)
    assert "Published" not in plain and text.startswith(plain.rstrip())
    assert text.count("Published: ") == len(published.PUBLISHED)
    assert text.count("copied from the paper, not measured here") == len(published.PUBLISHED)
    assert "arXiv 2311.11261" in text and "70.52" in text and "37.4" in text


def test_every_row_has_a_value_a_column():
    for table in published.PUBLISHED:
        assert table.source.count("arXiv") == 1 and table.setting
        assert {len(row) for row in table.rows} == {len(table.columns)}
        assert {len(row) for row in table.sheet.blocks[0].rows} == {len(table.columns)}
