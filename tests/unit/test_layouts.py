"""Base-to-novel, cross-dataset, domain-shift tables: what joins, what never does, what is told."""

import csv
import io
import re
from pathlib import Path

import pytest
from make_records import (
    TRANSFER,
    UNKNOWN,
    WHITE_BOX,
    listed,
    make,
    outcome,
    sha,
    trained,
    write,
    zero_shot,
)

from advprompt.report import layout
from advprompt.report import render as report
from advprompt.report.across import arrange
from advprompt.report.layout import cost_sheet, tidy_csv
from advprompt.report.tables import build_tables

FLIPS, SHIFTS = ({"INPUT.TRANSFORMS": [t]} for t in ("random_flip", "random_translation"))
TWO = {"base": (80, 40, 30), "new": (60, 20, 0)}


def split_up(*made):
    """The tables across tests of records, and those of one test."""
    tables = arrange(listed(*made))
    return [t for t in tables if t.across], [t for t in tables if not t.across]


def joined(*made):
    """The only table across tests of these records, and its sheet."""
    ((join,), tables) = split_up(*made)
    assert not tables
    return join, layout.table_sheet(join)


def half(split, seed=1, **changes):
    """A base-to-novel record of one half of the classes."""
    facts = {"DATASET.SUBSAMPLE_CLASSES": split, "OUTPUT_DIR": f"{split}/{seed}"}
    fields = {"protocol": "base2new", "split": split, "seed": seed, "classes": 5, "config": facts}
    scores = dict(zip(("clean", "transfer", "white_box"), TWO[split], strict=True))
    return make(**scores | fields | changes)


def across(dataset, seed=1, protocol="xd", source="ImageNet", config=None, **changes):
    """A record of prompts of ``source``, tested on ``dataset``; older ones have no source."""
    config = {"DATASET.NAME": dataset, "TEST.PROTOCOL": protocol} | (config or {})
    record = make(dataset=dataset, protocol=protocol, seed=seed, config=config, **changes)
    return record if source is None else record | {"source": source}


def shown(sheet, block=0, text=" "):
    """A block's rows without the columns that tell the model."""
    return [row[3:] for row in sheet.blocks[block].rows if text in " ".join(row)]


def test_base_and_new_stand_in_one_table_with_the_mean_of_the_averages():
    made = [half(split, seed) for split in TWO for seed in (1, 2)]
    made += [half("base", 3, clean=89), half("new", 3, clean=66)]
    join, sheet = joined(*made)
    figures = ("clean", "transfer PGD-40 16/255 (embedding-KL)", "end-to-end PGD-100 1/255")
    columns = [(c.group, c.name) for c in sheet.blocks[0].columns[3:-1]]
    assert columns == [(figure, name) for figure in figures for name in ("base", "new", "H")]
    ((*cells, seeds),) = shown(sheet)
    assert cells == [  # 71.0 is 2 * 83 * 62 / 145, of the averages
        *("83.0 ± 12.9", "62.0 ± 8.6", "71.0", "40.0 ± 0.0", "20.0 ± 0.0", "26.7"),
        *("30.0 ± 0.0", "0.0 ± 0.0", "0.0"),
    ]
    assert seeds == "3" and not sheet.notes
    assert sheet.title == "EuroSAT, base-to-novel, 5 base and 5 new classes, tiny"


def test_an_average_over_tests_of_other_seeds_is_one_of_means():
    made = [across("Caltech101", seed, clean=70 + 10 * seed) for seed in (1, 2)]
    for pets, average in (([1], "72.5"), ([1, 2], "72.5 ± 31.8")):
        rows = [across("OxfordPets", seed, clean=60) for seed in pets]
        _, sheet = joined(*made, *rows)
        assert shown(sheet)[0][2] == average, sheet.blocks[0].columns


def test_what_an_older_half_does_not_say_is_the_default():
    later = {"DATASET.SUBSAMPLE_CLASSES": "new", "TEST.FIRST": 0, "TEST.SUBSET": 0}
    join, _ = joined(half("base"), half("new", config=later))
    assert list(join.tests) == ["base", "new"]


def test_zero_shot_figures_of_further_data_join_the_table():
    own = zero_shot(dataset="OxfordPets", protocol="xd", config={"DATASET.NAME": "OxfordPets"})
    join, sheet = joined(across("ImageNet"), across("Caltech101"), own)
    assert any(fact.startswith("trained on ImageNet; the average") for fact in sheet.facts)
    assert list(join.tests) == ["ImageNet", "Caltech101", "OxfordPets"]


def test_zero_shot_rows_join_whatever_their_protocol():
    halves = [half(split) for split in TWO]
    own = [zero_shot(split=s, classes=5, config={"DATASET.SUBSAMPLE_CLASSES": s}) for s in TWO]
    under = [record | {"protocol": "base2new"} for record in own]
    for untrained in (own, under):
        _, sheet = joined(*halves, *untrained)
        assert [row[0] for row in sheet.blocks[0].rows] == ["ZeroshotCLIP", "AdvPT"]
    ((join,), _) = split_up(*under)  # alone
    assert len(join.rows) == 1
    _, tables = split_up(*own)
    assert len(tables) == 2


APART = {
    "data": {"dataset": "Caltech101"},
    "subset": {"subset": 100},
    "backbone": {"backbone": "ViT-B/16"},
    "weights": {"weights_sha256": "cd" * 32},
    "attacks": {"attacks": [TRANSFER | outcome(20)]},
    "threat": {"attacks": [TRANSFER | outcome(20), WHITE_BOX | outcome(0) | {"eps": "4/255"}]},
}


@pytest.mark.parametrize("changes", APART.values(), ids=APART)
def test_halves_of_other_settings_never_meet(changes):
    joins, _ = split_up(half("base"), half("new", **changes))
    assert [len(join.tests) for join in joins] == [1, 1]
    for join in joins:
        assert any(note.startswith("missing: ") for note in join.notes)
        assert shown(layout.table_sheet(join))[0].count("–") == 2 * (1 + len(join.figures[1:]))


def test_missing_halves_seeds_and_duplicates_are_told():
    older = {"created": "2024-01-01T00:00:00+00:00"}
    made = [half("base", 1), half("base", 2), half("new", 1), half("base", 1) | older]
    made += [half("base", trainer="APD")]
    join, sheet = joined(*made)
    assert sorted(note.partition(":")[0] for note in sheet.notes) == ["duplicate"] + ["missing"] * 3
    text = " ".join(sheet.notes)
    assert "AdvPT, 16 shots has no seed 2 on the new classes" in text
    assert "APD, 16 shots has no run on the new classes" in text
    assert "run3/record.json" in text
    assert [row[-1] for row in sheet.blocks[0].rows] == ["1", "1 to 2"]


def test_another_test_set_of_a_half_keeps_a_table_of_its_own():
    made = [half("base"), half("new"), half("new", 2), half("new", 3, n=150)]
    (join,), (table,) = split_up(*made)
    assert table.first["clean"]["n"] == 150
    assert any(note.startswith("apart: ") and "run3" in note for note in join.notes)


def test_a_smaller_test_set_than_the_subset_is_whole_and_joins():
    asked = {"config": {"TEST.SUBSET": 100}}
    _, sheet = joined(half("base", subset=100, n=100, **asked), half("new", n=70, **asked))
    assert any("base 100, new 70 (a fixed" in fact for fact in sheet.facts)


def test_source_targets_and_average_stand_in_a_block_per_figure():
    made = [
        across(name, seed, clean=clean + seed)
        for name, clean in (("ImageNet", 69), ("EuroSAT", 40), ("OxfordPets", 81))
        for seed in (0, 1, 2)
    ]
    made += [zero_shot(dataset=name) for name in ("EuroSAT", "OxfordPets", "ImageNet", "Food101")]
    joins, (alone,) = split_up(*made)
    assert alone.first["dataset"] == "Food101"  # which no prompt was tested on
    (join,) = joins
    sheet = layout.table_sheet(join)
    assert [block.heading for block in sheet.blocks] == [name for name, _ in join.figures]
    columns = [column.heading for column in sheet.blocks[0].columns[3:]]
    targets = ["target Pets", "target EuroSAT", "target average"]
    assert columns == ["source ImageNet", *targets, "seeds n"]
    (zero, prompts) = shown(sheet)
    assert zero == ["80.0", "80.0", "80.0", "80.0", "1"]
    assert prompts == ["70.0 ± 2.5", "82.0 ± 2.5", "41.0 ± 2.5", "61.5 ± 2.5", "3"]
    assert sheet.title == "ImageNet to 2 data sets, cross-dataset, tiny"
    (gap,) = [note for note in sheet.notes if "papers" in note]
    assert "Caltech101" in gap and "EuroSAT" not in gap
    # the source's folder alone
    (join,), _ = split_up(across("ImageNet"), across("ImageNet", seed=2))
    sheet = layout.table_sheet(join)
    assert sheet.title == "ImageNet without a target, cross-dataset, tiny"
    columns = [column.heading for column in sheet.blocks[0].columns[3:]]
    assert columns == ["source ImageNet", "seeds n"]
    assert [len(row) for row in shown(sheet)] == [2]


def test_a_target_that_would_be_augmented_otherwise_is_the_same_model():
    (join,), _ = split_up(across("ImageNet", config=FLIPS), across("Shapes", config=SHIFTS))
    assert [set(row.parts) for row in join.rows] == [{"ImageNet", "Shapes"}]


def ambiguous(join):
    """The paths that each note on twins names, such as ``01`` for run0 and run1."""
    notes = [note for note in join.notes if note.startswith("ambiguous: ")]
    return ["".join(re.findall(r"run(\d+)/record", note)) for note in notes]


def test_models_that_every_part_tells_apart_are_rows_of_their_own():
    made = [
        across(name, seed, config=config, clean=clean + 5 * (name == "ImageNet"))
        for name in ("ImageNet", "EuroSAT", "Shapes")
        for seed in (1, 2)
        for config, clean in ((FLIPS, 60), (SHIFTS, 70))
    ]
    join, sheet = joined(*made)
    flips = ("random_flip", "random_translation")
    assert [row.name for row in join.rows] == [f'AdvPT (INPUT.TRANSFORMS=["{f}"])' for f in flips]
    cells = [[cell[:4] for cell in row[:4]] for row in shown(sheet)]
    assert cells == [["65.0", *3 * ["60.0"]], ["75.0", *3 * ["70.0"]]]
    assert not ambiguous(join)


TWINS = {  # the twins, the rest of the row, what it shows
    "sources": ([("ImageNet", FLIPS), ("ImageNet", SHIFTS)], [("EuroSAT", FLIPS)], ["EuroSAT"]),
    "targets": ([("EuroSAT", FLIPS), ("EuroSAT", SHIFTS)], [("ImageNet", FLIPS)], ["ImageNet"]),
    "another setting": (
        [("EuroSAT", {"DATASET.TEMPLATE": text}) for text in ("", "a {}.")],
        [("ImageNet", {"DATASET.TEMPLATE": ""})],
        ["ImageNet"],
    ),
}


@pytest.mark.parametrize(("twins", "rest", "kept"), TWINS.values(), ids=TWINS)
def test_twins_that_nothing_tells_apart_are_left_out(twins, rest, kept):
    made = [across(name, config=config) for name, config in twins + rest]
    made[1]["created"] = "2099-01-01T00:00:00+00:00"  # being newer, it was the row's figure
    (join,), (table,) = split_up(*made)
    (row,) = join.rows
    assert list(row.parts) == kept and ambiguous(join) == ["01"]
    assert not any(note.startswith(("missing: AdvPT", "duplicate")) for note in join.notes)
    assert len(table.rows) == 2 and table.first["dataset"] == twins[0][0]  # where they stand


def test_untrained_models_of_other_templates_do_not_mix():
    untrained = [zero_shot(dataset="EuroSAT", config={"DATASET.TEMPLATE": t}) for t in ("", "a {}")]
    made = [across("ImageNet"), across("EuroSAT"), zero_shot(dataset="ImageNet"), *untrained]
    (join,), _ = split_up(*made)
    assert ambiguous(join) == ["34"] and len(join.rows) == 2


def test_few_shot_twins_of_the_source_are_left_out():
    sources = [make(dataset="ImageNet", clean=c, config=t) for c, t in ((70, FLIPS), (90, SHIFTS))]
    made = [across("EuroSAT", config=SHIFTS), *sources]
    (join,), tables = split_up(*made)
    (row,) = join.rows
    assert list(row.parts) == ["EuroSAT"] and ambiguous(join) == ["12"]
    assert sum(len(table.rows) for table in tables) == 2
    newer = {"created": "2099-01-01T00:00:00+00:00"}
    again = make(dataset="ImageNet", clean=75, config=FLIPS) | newer
    (join,), _ = split_up(made[0], again, sources[0])  # one model, tested twice
    assert join.rows[0].accuracies(None, "ImageNet") == [75] and not ambiguous(join)


@pytest.mark.parametrize("style", [*report.WRITERS, "html"])
def test_a_table_of_twins_alone_still_says_so(style, tmp_path):
    made = [
        across(name, config=FLIPS | {"DATASET.VAL_PERCENT": v + i})
        for i, name in enumerate(("ImageNet", "EuroSAT"))
        for v in (0.1, 0.2)
    ]
    (join,), tables = split_up(*made)
    assert not join.rows and ambiguous(join) == ["01", "23"] and len(tables) == 2
    text, _ = report.render([write(tmp_path, *made)], style, costs=True)
    assert "several models on" in " ".join(text.split())


def test_a_missing_target_is_told_and_its_average_left_out():
    made = [across("Shapes", source="Shapes"), across("EuroSAT", source="Shapes")]
    made += [across("Caltech101", source="Shapes", trainer="APD")]
    _, sheet = joined(*made)
    rows = {row[0]: row[3:] for row in sheet.blocks[0].rows}
    assert rows == {"APD": ["–", "80.0", "–", "–", "1"], "AdvPT": ["80.0", "–", "80.0", "–", "1"]}
    assert "missing: APD, 16 shots has no run on Shapes, EuroSAT" in sheet.notes
    _, sheet = joined(across("EuroSAT", source="Shapes"))  # which no model was tested on
    assert sheet.notes == ["missing: AdvPT, 16 shots has no run on Shapes"]


def test_the_few_shot_run_stands_for_the_source_figure():
    other = {"OPTIM.LR": 9}
    few_shot = [make(dataset="ImageNet", config=c, clean=n) for c, n in (({}, 70), (other, 80))]
    made = [across("EuroSAT"), across("EuroSAT", 2), *few_shot]
    (join,), tables = split_up(*made)
    ((source, target, *_),) = shown(layout.table_sheet(join))
    assert (source, target) == ("70.0", "80.0 ± 0.0")
    assert "no seed 2 on ImageNet" in " ".join(join.notes)
    (table,) = tables  # where it stands as well, beside the one of another training
    assert len(table.rows) == 2
    made[0] = across("EuroSAT", config=other)
    (join,), _ = split_up(*made)
    assert sorted(list(row.parts) for row in join.rows) == [["EuroSAT"], ["ImageNet", "EuroSAT"]]


def test_sources_and_protocols_are_tables_of_their_own():
    made = [
        across(name, protocol=protocol, source=source)
        for name in ("ImageNetV2", "EuroSAT")
        for protocol in ("xd", "dg")
        for source in ("ImageNet", "Shapes", None)
    ]
    joins, alone = split_up(*made)
    assert len(joins) == 4 and all(len(join.rows) == 1 for join in joins)
    assert len(alone) == 4 and all("source: " in " ".join(table.notes) for table in alone)
    tables = build_tables(listed(*made))  # as the CSV has them: nothing is a duplicate
    assert not any(note.startswith("duplicate") for table in tables for note in table.notes)


def test_prompts_of_unknown_source_are_averaged_with_none():
    older = [{k: v for k, v in across("EuroSAT", 3).items() if k != "source"}]
    made = [across("EuroSAT", 1), across("EuroSAT", 2, source=None), *older]
    made += [across("EuroSAT", 2, source=None, clean=70), zero_shot()]
    (join,), (alone,) = split_up(*made)
    assert [set(row.shots for row in join.rows), len(alone.rows)] == [{0, 16}, 4]
    (table,) = build_tables(listed(*made))
    for rows in (alone.rows, table.rows):
        assert all(len(row.runs) == 1 for row in rows) and len({r.name for r in rows}) == len(rows)
    named = {row.name.partition("(")[2] for row in table.rows if row.shots}
    assert named == {f'source="{s}")' for s in ("ImageNet", "unknown 1", "unknown 2", "unknown 3")}
    for notes in (alone.notes, table.notes):
        assert all(f"run{i}/" in n for i, n in zip((1, 2, 3), sorted(notes), strict=True))
    sources = {row["source"] for row in csv.DictReader(io.StringIO(tidy_csv([table])))}
    assert sources == {"", "ImageNet", "unknown 1", "unknown 2", "unknown 3"}
    # whose unknown source may be the tested data
    made = [across("ImageNet", source=None), across("EuroSAT"), across("EuroSAT", 2)]
    (join,), (table,) = split_up(*made)
    assert list(join.tests) == ["EuroSAT"] and table.first["dataset"] == "ImageNet"


def test_domain_shift_has_the_papers_columns():
    names = ("ImageNetR", "ImageNetA", "ImageNet", "ImageNetSketch", "ImageNetV2")
    _, sheet = joined(*(across(name, protocol="dg") for name in names))
    columns = [column.heading for column in sheet.blocks[0].columns[3:]]
    assert columns[:5] == ["source ImageNet", *(f"target -{n}" for n in ("V2", "Sketch", "A", "R"))]
    assert sheet.title == "ImageNet to 4 shifted data sets, domain shift, tiny"
    assert not sheet.notes


def test_self_checks_name_the_test():
    attacks = [TRANSFER | outcome(20), WHITE_BOX | outcome(0) | {"warnings": ["zero_grad_share"]}]
    _, sheet = joined(half("base"), half("new", attacks=attacks))
    (note,) = sheet.notes
    assert note.startswith("self-check: on the new classes: AdvPT, 16 shots, seed 1, end-to-end")


def test_captions_hold_all_that_a_comparison_needs():
    device = {"device": "2 x CPU x"}
    made = [make(seed=s, data_sha256=sha("1"), subset=50) | device for s in (1, 2)]
    (table,) = build_tables(listed(*made))
    attack = "alpha {}, {} steps, 1 restart, uniform start, objective {}".format
    assert layout.caption(table)[:5] == [
        "backbone tiny, weights sha256 abababababab",
        "100 test images (a fixed stratified subset, TEST.SUBSET 50), data sha256 111111111111",
        "device 2 x CPU x",
        "transfer PGD-40 16/255 (embedding-KL): Linf ball, eps 16/255, "
        + attack("2/255", 40, "embedding-KL"),
        "end-to-end PGD-100 1/255: Linf ball, eps 1/255, " + attack("1/255", 100, "cross entropy"),
    ]
    blocks = layout.table_sheet(table).blocks + cost_sheet(table).blocks
    sides = [[column.left for column in block.columns] for block in blocks]
    assert sides == [[1, 0, 1, 0, 0, 0, 0, 0], [1, 0, 1, 0, 0, 0, 0, 0, 1]]
    own = zero_shot(split="base", classes=5, config={"DATASET.SUBSAMPLE_CLASSES": "base"})
    join, _ = joined(half("base"), half("new"), own)
    assert layout.caption(join)[1:4] == [
        "test images: base 100, new 100 (all of the test set)",
        "trained on the base classes; H: harmonic mean of the base and the new average",
        "zero-shot CLIP saw no training image",
    ]
    unknown = {"weights_sha256": None}
    join, _ = joined(*(across(n, **unknown) | device for n in ("ImageNet", "EuroSAT")))
    assert layout.caption(join)[:4] == [
        "backbone tiny, weights sha256 unknown",
        "test images: ImageNet 100 of 10 classes, EuroSAT 100 of 10 classes (all of the test set)",
        "trained on ImageNet; the average weighs every target equally and needs all of them",
        "device 2 x CPU x",
    ]


@pytest.fixture
def folder(tmp_path):
    made = [half(s) for s in TWO] + [across("ImageNet"), across("EuroSAT"), make(shots=1)]
    return write(tmp_path, *made)


@pytest.mark.parametrize("style", report.WRITERS)
def test_every_format_holds_the_joins_and_costs(style, folder):
    text, remarks = report.render([folder], style, costs=True)
    assert not remarks
    flat = " ".join(text.replace("\\", "").split())
    titles = ("base-to-novel, 5 base and 5 new classes", "ImageNet to 1 data set,")
    for wanted in ("68.6", *titles, "Costs: EuroSAT, few-shot", "seconds", "no run on"):
        assert wanted in flat
    assert flat.count("few-shot, 10 classes") == 2  # with its costs; no table for a split alone
    if style == "latex":
        assert r"\multicolumn{3}{c}{clean}" in text and r"\cmidrule(lr){4-6}" in text


def test_csv_stays_long(folder):
    text, remarks = report.render([folder], "csv")
    rows = list(csv.DictReader(io.StringIO(text)))
    found = {(r["dataset"], r["protocol"], r["split"], r["source"]) for r in rows}
    assert found == {
        *(("EuroSAT", "base2new", "base", ""), ("EuroSAT", "base2new", "new", "")),
        *(("EuroSAT", "few_shot", "all", ""), ("EuroSAT", "xd", "all", "ImageNet")),
        ("ImageNet", "xd", "all", ""),
    }
    assert len(rows) == 5 * 3 and any("papers" in remark for remark in remarks)


def test_the_first_images_are_no_whole_test_set():
    (table,) = build_tables(listed(make(config={"TEST.FIRST": 50})))
    (row, *_) = csv.DictReader(io.StringIO(tidy_csv([table])))
    assert (row["subset"], row["first"]) == ("", "50")
    assert any("the first by file name, TEST.FIRST 50" in line for line in layout.caption(table))


def test_costs_are_means_over_seeds_of_all_tests():
    seconds = {"train": 100.0, "bank": 5.0, "eval": 30.0}
    made = [half("base", s, seconds=seconds | {"train": 100.0 * s}) for s in (1, 2)]
    made += [half("new", s, seconds={"eval": 12.0}) for s in (1, 2)]
    join, _ = joined(*made)
    ((*_, parameters, epochs, train, bank, evaluation, device),) = cost_sheet(join).blocks[0].rows
    assert (parameters, epochs, train, bank, evaluation) == ("4096", "50", "150", "5.0", "42")
    assert "CPU" in device


def test_costs_are_means_over_the_seeds_that_have_them():
    trained = {"train": 100.0, "bank": 5.0, "eval": 30.0}
    made = [across("ImageNet", 1, seconds=trained)]
    made += [across("EuroSAT", seed, seconds={"eval": 12.0}) for seed in (1, 2, 3)]
    coop = {"trainer": "CoOp", "seconds": {"eval": 8.0}}
    made += [across(n, s, **coop) for n, s in (("ImageNet", 1), ("EuroSAT", 1), ("EuroSAT", 2))]
    made += [across(n, s, trainer="APD") for n, s in (("ImageNet", 1), ("EuroSAT", 2))]
    join, _ = joined(*made)
    rows = {row[0]: row[5:8] for row in cost_sheet(join).blocks[0].rows}
    assert rows == {"APD": ["–", "–", "–"], "AdvPT": ["100", "5.0", "42"], "CoOp": ["–", "–", "16"]}


def in_run(run, **tests):
    """Records of one run folder: its own, and those of tests of the finished model."""
    own = {Path(f"{run}/record.json"): tests.pop("own")}
    return own | {Path(f"{run}/tests/{name}/record.json"): r for name, r in tests.items()}


def test_tests_lie_in_the_run_that_trained():
    own = make(dataset="ImageNet", clean=70, config={})
    found = in_run("a", own=own, eurosat=across("EuroSAT", clean=50), pets=across("OxfordPets"))
    joined, few_shot = arrange(found)[::-1]
    assert shown(layout.table_sheet(joined)) == [["70.0", "80.0", "50.0", "65.0", "1"]]
    assert not few_shot.across and len(few_shot.rows) == 1
    (table,) = arrange(in_run("a", own=half("base"), new=half("new")))
    assert shown(layout.table_sheet(table))[0][:3] == ["80.0", "60.0", "68.6"]
    # an older copy of the source's record counts once
    found = in_run("a", own=own, eurosat=across("EuroSAT"))
    copy = {Path("xd/ImageNet/seed1/record.json"): across("ImageNet", clean=70)}
    (table,) = [table for table in arrange(found | copy) if table.across]
    assert shown(layout.table_sheet(table)) == [["70.0", "80.0", "80.0", "1"]]
    assert not any(note.startswith("duplicate") for note in table.notes)


def test_run_folders_tell_twins_apart():
    crops = ({"INPUT.TRANSFORMS": [t]} for t in ("center_crop", "random_resized_crop"))
    own = (make(dataset="ImageNet", clean=c, config=t) for c, t in ((70, FLIPS), (90, SHIFTS)))
    runs = [
        in_run(name, own=record, xd=across("EuroSAT", config=config))
        for name, record, config in zip("ab", own, crops, strict=True)
    ]
    (table,) = [table for table in arrange(runs[0] | runs[1]) if table.across]
    assert [row[0] for row in shown(layout.table_sheet(table))] == ["70.0", "90.0"]
    assert not ambiguous(table)
    del runs[1][Path("b/tests/xd/record.json")]  # the other was tested on its source only
    (table,) = [table for table in arrange(runs[0] | runs[1]) if table.across]
    assert [row[:2] for row in shown(layout.table_sheet(table))] == [["70.0", "80.0"]]


ON_NEW = {  # records of a model trained on the new classes; older ones took the time for it
    "said": trained("new"),
    "older": {"seconds": {"train": 5.0}},
}


@pytest.mark.parametrize("facts", ON_NEW.values(), ids=ON_NEW)
def test_a_training_on_the_new_classes_stands_apart_and_says_so(facts):
    honest = trained("base") if "trained" in facts else {}
    newer = {"created": "2099-01-01T00:00:00+00:00"}
    made = [half("base", **honest), half("new", **honest), half("new", clean=99, **facts) | newer]
    joins, _ = split_up(*made)
    sheets = {sheet.title: sheet for sheet in map(layout.table_sheet, joins)}
    usual = "EuroSAT, base-to-novel, 5 base and 5 new classes, tiny"
    other = "EuroSAT, base-to-novel, 5 new classes, tiny, trained on the new classes of EuroSAT"
    assert sheets.keys() == {usual, other}
    assert shown(sheets[usual])[0][:3] == ["80.0", "60.0", "68.6"] and not sheets[usual].notes
    assert shown(sheets[other])[0][:3] == ["–", "99.0", "–"]
    assert "trained on the new classes of EuroSAT" in " ".join(sheets[other].facts)
    single = [t for t in build_tables(listed(*made)) if t.first["split"] == "new"]
    assert sorted(row.accuracies()[0] for table in single for row in table.rows) == [60, 99]


def test_a_model_of_unknown_training_is_in_no_table_across_tests():
    for record in (half("new", **UNKNOWN), across("EuroSAT", source=None) | UNKNOWN):
        joins, (table,) = split_up(record)
        assert not joins and table.rows[0].trained_with == "unknown"


def test_halves_of_two_data_sets_never_meet():
    """Two folders of images of one name; zero-shot models have no prompts to tell them apart."""
    own = {"dataset": "Folder", "config": {"DATASET.FOLDER_NAME": "birds"}}
    sets = [{"set_sha256": sha(s)} | own for s in "ab"]
    made = [half("base", **sets[0]), half("new", **sets[1])]
    made += [zero_shot(split="base", classes=5, **sets[1])]
    joins, _ = split_up(*made)
    found = {layout.title(join): {r.trainer: [*r.parts] for r in join.rows} for join in joins}
    name = "birds, base-to-novel, 5 {} classes, tiny, data {}"
    two = "birds, base-to-novel, 5 base and 5 new classes, tiny, data bbbbbbbb"
    assert found == {
        name.format("base", "aaaaaaaa"): {"AdvPT": ["base"]},
        two: {"AdvPT": ["new"], "ZeroshotCLIP": ["base"]},
    }


def test_tests_of_other_prompts_are_not_one_model():
    def halves(seed, base, new):
        return [
            half(s, seed, prompts_sha256=p and sha(p)) for s, p in (("base", base), ("new", new))
        ]

    join, _ = joined(*halves(1, "a", "a"), *halves(2, "b", "c"), *halves(3, "d", None))
    parts = {
        row.variant: {test: sorted(runs) for test, runs in row.parts.items()} for row in join.rows
    }
    assert parts == {
        "prompts=unset": {"base": [1, 3], "new": [1, 3]},
        "prompts=bbbbbbbb": {"base": [2]},
        "prompts=cccccccc": {"new": [2]},
    }
    assert "prompts=bbbbbbbb), 16 shots has no run on the new classes" in " ".join(join.notes)


def test_prompts_tell_which_test_is_whose():
    made = [
        across(name, prompts_sha256=sha(p), clean=c)
        for p, c in (("a", 60), ("b", 70))
        for name in ("ImageNet", "EuroSAT")
    ]
    join, _ = joined(*made)
    averages = [[row.accuracies(None, test) for test in row.parts] for row in join.rows]
    assert sorted(averages) == [[[60], [60]], [[70], [70]]]
    # a run of another model does not stand for the source's figure
    prompts = [{"prompts_sha256": sha(p), "config": {}} for p in "ab"]
    few_shot = [make(dataset="ImageNet", clean=90, **own) for own in prompts]
    (join,), (table,) = split_up(made[1], few_shot[1])
    assert list(join.rows[0].parts) == ["EuroSAT"] and len(table.rows) == 1
    (join,), _ = split_up(made[1], few_shot[0])
    assert list(join.rows[0].parts) == ["ImageNet", "EuroSAT"]
