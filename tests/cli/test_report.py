"""Tables from records: what stands side by side, what never does, and what is told beside it."""

import csv
import io
import subprocess
import sys

import pytest
from make_records import (
    BANK,
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

from advprompt.cli import report as command
from advprompt.report import formats, layout
from advprompt.report import render as report
from advprompt.report.formats import Block, Column, Sheet
from advprompt.report.tables import build_tables, trained_split
from advprompt.report.threats import attack_headings, threat_label
from advprompt.utils.entry import run_tool
from advprompt.utils.errors import UserError
from tests.conftest import REPO


def tables(*made):
    return build_tables(listed(*made))


TWO = [TRANSFER | outcome(40), WHITE_BOX | outcome(30)]
ATTACK = {
    "objective": "kl",
    "target": "frozen_prompt",
    "eps": "8/255",
    "alpha": "4/255",
    "steps": 10,
    "restarts": 5,
    "start": "one_sided",
    "norm": "l2",
    "momentum": 1.0,
}
APART = [
    *({"dataset": "Caltech101"}, {"protocol": "xd"}, {"n": 99}),
    *({"split": "base"}, {"classes": 5}, {"subset": 100}, {"backbone": "ViT-B/16"}),
    *({"weights_sha256": "cd" * 32}, {"attacks": TWO[:1]}, {"data_sha256": "ef" * 32}),
    *({"attacks": [TWO[0] | {key: value}, TWO[1]]} for key, value in ATTACK.items()),
]


@pytest.mark.parametrize("changes", APART, ids=str)
def test_never_in_one_table(changes):
    assert len(tables(make(), make(seed=2))) == 1
    assert len(tables(make(), make(**{"seed": 2} | changes))) == 2
    assert len(tables(make(subset=50), make(**{"seed": 2, "subset": 50} | changes))) == 2


def test_the_order_of_attacks_does_not_matter():
    (table,) = tables(make(attacks=TWO), make(seed=2, attacks=TWO[::-1]))
    (row,) = table.rows
    assert [row.accuracies(signature) for _, signature in table.figures[1:]] == [[40, 40], [30, 30]]


def test_a_local_checkpoint_is_known_by_its_content():
    made = [make(backbone="file:/a/x.pt"), make(seed=2, backbone="file:/b/y.pt")]
    assert len(tables(*made)) == 1


def test_rows_are_trainer_by_shots_with_zero_shot_first():
    made = [make(shots=16), make(shots=-1), make(shots=4), make(trainer="APD"), zero_shot()]
    (table,) = tables(*made)
    rows = [(row.trainer, row.shots_label) for row in table.rows]
    assert rows[:2] == [("ZeroshotCLIP", "zero-shot"), ("APD", "16")]
    assert rows[2:] == [("AdvPT", shots) for shots in ("4", "16", "all")]


def test_zero_shot_joins_the_tables_of_its_setting_only():
    made = [make(), make(protocol="dg"), zero_shot(), zero_shot(dataset="Caltech101")]
    found = [(t.first["dataset"], t.protocol, len(t.rows)) for t in tables(*made)]
    assert found[:1] == [("Caltech101", "zero_shot", 1)]
    assert found[1:] == [("EuroSAT", "dg", 2), ("EuroSAT", "few_shot", 2)]


def test_figures_are_the_mean_and_interval_over_seeds():
    (table,) = tables(*(make(clean=c, seed=s) for s, c in enumerate([79, 80, 81])))
    (block,) = layout.table_sheet(table).blocks
    assert block.rows[0] == [
        *("AdvPT", "16", "PGD-10 8/255 (embedding-KL)"),
        *("80.0 ± 2.5", "40.0 ± 0.0", "30.0 ± 0.0", "4096", "3"),
    ]
    assert layout.cell([61.25]) == "61.2"


def test_settings_that_change_a_figure_are_other_rows():
    made = [make(), make(seed=2, config={"OPTIM": {"LR": 0.1}, "SEED": 2})]
    names = [row.name for row in tables(*made)[0].rows]
    assert sorted(names) == ["AdvPT (OPTIM.LR=0.002)", "AdvPT (OPTIM.LR=0.1)"]
    names = [row.name for row in tables(make(epochs=50), make(epochs=9))[0].rows]
    assert names == ["AdvPT (epochs=9)", "AdvPT (epochs=50)"]
    neutral = {"OUTPUT_DIR": "x", "DATASET.ROOT": "y", "DATASET.FEATURE_DIR": "z"}
    made = [make(), make(seed=2, config={"OPTIM.LR": 0.002, "SEED": 2} | neutral)]
    assert [len(row.runs) for row in tables(*made)[0].rows] == [2]


def test_training_threats_share_a_table_and_are_told():
    made = [make(), make(train_threat=None, seed=2), make(train_threat=WHITE_BOX, seed=3)]
    (table,) = tables(*made, zero_shot())
    first, *others = [row.trained_with for row in table.rows]
    assert first == "not trained"
    assert set(others) == {"PGD-10 8/255 (embedding-KL)", "clean images", "PGD-100 1/255"}
    (block,) = layout.table_sheet(table).blocks
    assert "trained with" in [column.name for column in block.columns]


def test_the_newer_duplicate_counts_and_both_are_named():
    older = make(clean=70) | {"created": "2024-01-01T00:00:00+00:00"}
    (table,) = tables(make(clean=80), older)
    assert table.rows[0].accuracies() == [80]
    (note,) = table.notes
    assert "run1/record.json" in note and "run0/record.json" in note and "seed 1" in note


def test_a_probed_record_counts_and_an_unprobed_one_is_noted():
    """Whichever is newer: TEST.PROBES 0 leaves out the checks of the model."""
    probed = make(clean=70) | {"created": "2024-01-01T00:00:00+00:00"}
    settings = {"OPTIM": {"LR": 0.002}, "SEED": 1, "TEST": {"PROBES": 0}}
    (table,) = tables(make(clean=80, config=settings), probed)
    assert table.rows[0].accuracies() == [70]
    (note,) = table.notes
    assert "only the probed" in note and "run1/record.json' counts" in note
    (table,) = tables(make(config=settings))
    (note,) = table.notes
    assert note.startswith("not probed: ") and "TEST.PROBES 0" in note
    alone = [a for a in make()["attacks"] if a["target"] == "embedding"]  # never probed
    assert not tables(make(config=settings, attacks=alone))[0].notes


def test_missing_seeds_are_named():
    made = [make(seed=s) for s in (1, 2, 3)] + [make(seed=2, shots=4), zero_shot()]
    (table,) = tables(*made)
    assert table.notes == ["missing: AdvPT, 4 shots has no seed 1, 3, which other rows have"]


def test_warnings_of_self_checks_are_told():
    attacks = [TWO[0], TWO[1] | {"warnings": ["zero_grad_share: 2 %"]}]
    (table,) = tables(make(attacks=attacks))
    (note,) = table.notes
    assert "zero_grad_share: 2 %" in note
    assert "AdvPT, 16 shots, seed 1, end-to-end PGD-100 1/255" in note


HEADINGS = [  # changes of the white-box attack, and the heading they make
    *(({}, "PGD-100 1/255"), ({"name": "autoattack"}, "AutoAttack 1/255")),
    *(({"steps": 0}, "noise 1/255"), ({"objective": "margin"}, "PGD-100 1/255 (margin)")),
]


def test_headings():
    for changes, heading in HEADINGS:
        assert attack_headings([WHITE_BOX | changes]) == [f"end-to-end {heading}"]
    assert attack_headings([TRANSFER]) == ["transfer PGD-40 16/255 (embedding-KL)"]
    name = "end-to-end PGD-100 1/255"
    restarts = [WHITE_BOX, WHITE_BOX | {"restarts": 5}]
    assert attack_headings(restarts) == [f"{name}, 1 restarts", f"{name}, 5 restarts"]
    for steps, count in ((100, ""), (5000, ""), (99, "-99"), (5001, "-5001"), (101, "-101")):
        label = threat_label(WHITE_BOX | {"name": "square", "steps": steps, "objective": None})
        assert label == f"Square{count} 1/255"
    fine, coarse = "jpeg, quality 75", "jpeg, quality 50"
    for views in (
        {f"{fine}, seen by the attack": "adaptive", f"{fine}, unseen by the attack": "hidden"},
        {f"{d}, seen by the attack": f"adaptive, {d[6:]}" for d in (fine, coarse)},
        {d: f"defence {d}" for d in (fine, coarse)},
    ):
        defended = [WHITE_BOX | {"defence": defence} for defence in views]
        assert attack_headings(defended) == [f"{name}, {said}" for said in views.values()]
    momentum = [WHITE_BOX, WHITE_BOX | {"momentum": 1.0}]
    assert attack_headings(momentum) == [name, f"{name}, momentum 1.0"]


SIZES = [("0.12346/255", "0.1235/255"), ("1.2346/255", "1.23/255"), ("2.6667/255", "2.67/255")]


@pytest.mark.parametrize("eps, shown", SIZES)
def test_fractions_of_255_are_short(eps, shown):
    assert threat_label(BANK | {"eps": eps}) == f"PGD-10 {shown} (embedding-KL)"


@pytest.mark.parametrize("style", report.FORMATS)
def test_every_format_tells_figures_threats_and_what_is_left_out(style, tmp_path):
    cut = make(seed=2, status="running", clean=None, attacks=[])
    root = write(tmp_path, make(), make(seed=3, subset=100), cut)
    text, remarks = report.render([root], style)
    flat = " ".join((text + " ".join(remarks)).replace("\\", "").split())
    for wanted in ("80", "EuroSAT", "16/255", "embedding-KL", "4096", "unfinished", "run2"):
        assert wanted in flat
    if style != "csv":
        assert not remarks
        for wanted in ("never saw the learned prompt", "100 test images", "TEST.SUBSET", " x CPU "):
            assert wanted in flat


def test_csv_is_tidy_and_exact(tmp_path):
    made = [make(clean=c, n=300, seed=s) for s, c in enumerate([100, 101])]
    text, _ = report.render([write(tmp_path, *made)], "csv")
    rows = list(csv.DictReader(io.StringIO(text)))
    names = ["transfer PGD-40 16/255 (embedding-KL)", "end-to-end PGD-100 1/255"]
    assert [row["figure"] for row in rows] == ["clean", *names]
    assert float(rows[0]["mean"]) == pytest.approx(33.5)
    assert float(rows[0]["ci95"]) == pytest.approx(12.7062 * (1 / 6), rel=1e-4)
    assert [row["table"] for row in rows] == ["1"] * 3
    assert rows[0]["seeds"] == "0 1" and rows[1]["attack_eps"] == "16/255"
    assert rows[0]["attack_eps"] == "" and rows[0]["weights_sha256"] == "ab" * 32
    assert ",".join(rows[2].values()).partition(",PGD-10 ")[::2] == (
        f"1,EuroSAT,few_shot,all,10,tiny,{'ab' * 32},,,300,AdvPT,,16",
        "8/255 (embedding-KL),4096,end-to-end PGD-100 1/255,"
        "pgd,ce,end_to_end,1/255,1/255,100,1,uniform,linf,10,0,0 1,,EuroSAT,",
    )


def test_markdown_is_one_table_per_group(tmp_path):
    text, _ = report.render([write(tmp_path, make(), make(dataset="Caltech101"))], "markdown")
    assert sum(line.startswith("|-") or line.startswith("|:") for line in text.splitlines()) == 2
    widths = {line.count("|") for line in text.splitlines() if line.startswith("|")}
    assert widths == {9}


def test_latex_is_escaped(tmp_path):
    made = [make(dataset="my_set", seed=seed) for seed in (1, 2)]
    text, _ = report.render([write(tmp_path, *made)], "latex")
    assert r"my\_set" in text and r"$\pm$" in text and r"95 \%" in text
    assert "my_set" not in text.replace(r"\_", "")
    for rule in ("toprule", "midrule", "bottomrule", "begin{tabular}", "end{table}"):
        assert text.count("\\" + rule) == 1


def test_a_sheet_in_every_format():
    grouped = [Column(name, "clean accuracy") for name in ("base", "H")]
    columns = [Column("trainer", left=True), *grouped, Column("a heading of many words")]
    rows = [["a name that is long enough", "80.0", "50 ± 3.25, over three seeds", "a_b"]]
    rows += [["CAPT", "9.1", "–", "a|b"]]
    plain = Block([Column("x", left=True), Column("y")], [["1", "2"]], heading="figure")
    first = Block(columns, rows, marked={(0, 1), (1, 0)})
    notes = ["missing: seed 2", "settings: all"]
    sheet = Sheet("T & Co", [first, plain], ["fact 1"], notes)
    assert (sheet.problems, sheet.remarks) == (notes[:1], notes[1:])
    terminal, markdown, latex = (
        [" ".join(line.split()) for line in next(form([sheet])).split("\n")]
        for form in (formats.terminal, formats.markdown, formats.latex)
    )
    assert terminal[2:5] + terminal[6:8] == [
        "trainer clean clean a heading of",
        "accuracy accuracy many words",
        "base H",
        "a name that is [80.0] 50 ± 3.25, over three seeds a_b",
        "long enough",
    ]
    assert terminal[10:] == (
        ["figure", "", "x y", "--- ---", "1 2", "", "fact 1"]
        + ["! missing: seed 2", "! settings: all"]
    )
    assert markdown[::2] == [
        "### T & Co",
        "| trainer | clean accuracy base | clean accuracy H | a heading of many words |",
        "| a name that is long enough | **80.0** | 50 ± 3.25, over three seeds | a_b |",
        "",
        "",
        "|-----|-----|",
        "",
        "- **missing**: seed 2",
    ]
    assert markdown[5] == r"| **CAPT** | 9.1 | – | a\|b |" and markdown[7] == "**figure**"
    assert latex[2:12] == [
        r"\caption{T \& Co. fact 1.}",
        r"\begin{tabular}{lrrr}",
        r"\toprule",
        r"\multicolumn{1}{c}{} & \multicolumn{2}{c}{clean accuracy} & \multicolumn{1}{c}{} \\",
        r"\cmidrule(lr){2-3}",
        r"trainer & base & H & a heading of many words \\",
        r"\midrule",
        r"a name that is long enough & \textbf{80.0} & 50 $\pm$ 3.25, over three seeds & a\_b \\",
        r"\textbf{CAPT} & 9.1 & -- & a|b \\",
        r"\bottomrule",
    ]
    assert r"\caption{T \& Co. figure. fact 1.}" in latex and latex[-1] == "% settings: all"
    figures = Block([Column("x", left=True), Column("y")], [["a", "1.0"], ["bbb", "10.25"]])
    lines = next(formats.markdown([Sheet("t", [figures])])).splitlines()[2:]
    assert lines[:1] + lines[2:4] == ["| x   |     y |", "| a   |   1.0 |", "| bbb | 10.25 |"]
    group = Column("H", "a base-to-new averylongword-s")
    assert formats._narrow(group) == "a\nbase-to-new\naverylongword-s\nH"


CUT = {"status": "running", "clean": None, "attacks": []}
MISTAKES = {  # the only record, if any; what is asked for, below the folder that has it
    "empty": (None, ["output"]),
    "absent": (None, ["nothing"]),
    "unfinished": (CUT, ["output"]),
    "bad out": ({}, ["output", "--out", ""]),
    "unwritable out": ({}, ["output", "--out", "file/report.md"]),
}


@pytest.mark.parametrize("changes, words", MISTAKES.values(), ids=MISTAKES)
def test_mistakes_end_with_code_2(changes, words, tmp_path, capsys):
    (tmp_path / "output").mkdir()
    (tmp_path / "file").write_text("")
    if changes is not None:
        write(tmp_path / "output", make(**changes))
    argv = [word if word.startswith("--") else str(tmp_path / word) for word in words]
    before = sorted(tmp_path.rglob("*"))
    assert run_tool(command.main, argv) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1
    assert "Traceback" not in captured.err and captured.out == ""
    assert sorted(tmp_path.rglob("*")) == before


def test_out_replaces_the_file(tmp_path, capsys):
    root = write(tmp_path / "output", make())
    target = tmp_path / "report.md"
    target.write_text("old")
    assert run_tool(command.main, [root, "--format", "markdown", "--out", str(target)]) == 0
    assert target.read_text(encoding="utf-8").startswith("### EuroSAT, few-shot")
    assert capsys.readouterr().out == f"wrote {target}\n"


def raiser(error):
    def main(argv):
        raise error

    return main


EXITS = [(raiser(UserError("no")), 2), (raiser(KeyboardInterrupt()), 130), (len, 1)]


@pytest.mark.parametrize("main, code", EXITS)
def test_exit_codes(main, code):
    assert run_tool(main, ["word"]) == code
    with pytest.raises(ZeroDivisionError):  # a bug is not hidden
        run_tool(raiser(ZeroDivisionError()), [])


def test_only_a_report_pays_for_what_draws_it():
    heavy = "{'scipy', 'jinja2', 'matplotlib'}"
    code = f"import sys, advprompt.cli.main, advprompt.cli.train; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPO)
    assert done.stdout == "set()\n", done.stderr


def test_tables_take_their_place_in_a_page(tmp_path, capsys):
    write(tmp_path / "out", make())
    page, root = tmp_path / "page.md", str(tmp_path / "out")
    page.write_text("above\n<!-- report a -->\nold\n<!-- end a -->\nbelow\n", encoding="utf-8")
    call = [root, "--format", "markdown", "--out", str(page)]
    for _ in range(2):  # twice is as once
        assert run_tool(command.main, [*call, "--mark", "a"]) == 0
        text = page.read_text(encoding="utf-8")
        assert text.startswith("above\n<!-- report a -->\n\n### EuroSAT")
        assert text.endswith("\n\n<!-- end a -->\nbelow\n") and "old" not in text
    assert run_tool(command.main, [*call, "--mark", "b"]) == 2
    assert "<!-- report b -->" in capsys.readouterr().err
    assert run_tool(command.main, [root, "--mark", "a"]) == 2
    assert page.read_text(encoding="utf-8") == text
    page.write_text("<!-- report a -->\nnever closed\n", encoding="utf-8")
    assert run_tool(command.main, [*call, "--mark", "a"]) == 2


def test_autoattack_is_told_in_words():
    unset = dict.fromkeys(("alpha", "start", "objective"))
    auto = WHITE_BOX | unset | {"name": "autoattack", "drop": True, "after": "pgd"}
    pgd = WHITE_BOX | {"drop": True}
    (table,) = tables(make(attacks=[pgd | outcome(30), auto | outcome(20)]))
    names = [name for name, _ in table.figures[1:]]
    assert names == ["end-to-end PGD-100 1/255", "end-to-end AutoAttack 1/255"]
    first, second = (line for line in layout.caption(table) if "100 steps, 1 restart" in line)
    assert first.endswith("every iterate scored")
    assert second.endswith("1 restart, on the samples that the other attacks of the row have left")


def test_a_setting_that_a_record_is_too_old_to_have_is_its_default():
    new = {"OPTIM": {"LR": 0.002}, "SEED": 1, "DEFENCE": {"QUALITY": 75}}
    changed = new | {"DEFENCE": {"QUALITY": 50}}
    (table,) = tables(make(seed=1), make(seed=2, config=new))
    assert [row.distinct("seed") for row in table.rows] == [[1, 2]]
    (table,) = tables(make(seed=1), make(seed=2, config=changed))
    assert [row.variant for row in table.rows] == ["DEFENCE.QUALITY=50", "DEFENCE.QUALITY=75"]


def test_older_names_of_settings_are_understood():
    old = {"TRAINER.ADVPT.PREC": "fp32", "TRAINER.ADVPT.CLASS_CHUNK": 0}
    old |= {"TRAINER.ADVPT.BANK_DIR": "banks"}
    new = {"TRAINER.ADVERSARIAL.PREC": "fp32", "DATASET.FEATURE_DIR": "elsewhere"}
    for trainer in ("AdvPT", "APD"):
        made = [make(trainer=trainer, seed=i, config=c) for i, c in enumerate((old, new))]
        assert [len(row.runs) for row in tables(*made)[0].rows] == [2]
    made = [make(config=old | {"TRAINER.ADVPT.PREC": "amp"}), make(seed=2, config=new)]
    assert len(tables(*made)[0].rows) == 2


def test_numbers_in_names_of_rows_are_in_their_order():
    made = [make(config={"TRAINER.ADVPT.N_CTX": n}) for n in (16, 4, 1.5, 50, 2)]
    (table,) = tables(*made)
    assert [row.variant for row in table.rows] == [f"N_CTX={n}" for n in (1.5, 2, 4, 16, 50)]


def test_a_methods_own_setting_names_the_row_and_the_rest_goes_below():
    variants = [("prompt", 0.1), ("finetune", 0.2)]
    configs = [{"TRAINER.TECOA.VARIANT": v, "OPTIM.LR": lr} for v, lr in variants]
    made = [make(trainer="TeCoA", config=config) for config in configs]
    (table,) = tables(*made)
    assert [row.variant for row in table.rows] == ['VARIANT="finetune"', 'VARIANT="prompt"']
    assert any("finetune" in note and "OPTIM.LR=0.2" in note for note in table.notes)
    (table,) = tables(*made, make(trainer="TeCoA", config=configs[0] | {"OPTIM.LR": 0.3}))
    assert all("OPTIM.LR" in row.variant for row in table.rows)  # needed, and so in the name


def test_an_unknown_training_is_unknown_in_words_and_alone(tmp_path):
    other = {"OPTIM.LR": 9, "OPTIM.MAX_EPOCH": 7}  # of the configuration that tested it
    made = [make(**UNKNOWN), make(**UNKNOWN, config=other), make(), zero_shot()]
    (table,) = tables(*made)
    assert [row.trainer for row in table.rows] == ["ZeroshotCLIP", "AdvPT", "AdvPT", "AdvPT"]
    sheet = layout.table_sheet(table)
    cells = [row[:3] for row in sheet.blocks[0].rows]
    names = [f'AdvPT (source="unknown {i}")' for i in (1, 2)]
    assert cells[2:] == [[name, "unknown", "unknown"] for name in names]
    assert sum("does not state how its model was trained" in note for note in sheet.notes) == 2
    costs = layout.cost_sheet(table).blocks[0].rows
    assert [row[4] for row in costs] == ["0", "50", "unknown", "unknown"]
    for style in report.FORMATS:
        text, _ = report.render([write(tmp_path, *made)], style, costs=True, paper=True)
        assert "unknown" in text and "None" not in text and "OPTIM.LR" not in text
    rows = csv.DictReader(io.StringIO(layout.tidy_csv([table])))
    assert {row["shots"] for row in rows} == {"0", "16", "unknown"}


def test_titles_say_which_data_where_a_name_is_not_enough(tmp_path):
    digests = {"set_sha256": sha("a"), "data_sha256": sha("1")}
    own = {"dataset": "Folder", "config": {"DATASET.FOLDER_NAME": "birds"}} | digests
    assert [layout.title(t) for t in tables(make(**own), make(**own | {"seed": 2}))] == [
        "birds, few-shot, 10 classes, tiny"
    ]
    other = {"set_sha256": sha("b"), "data_sha256": sha("2")}
    old = {"set_sha256": None, "data_sha256": None}
    repainted = {"data_sha256": sha("3")}
    for changes, said in ((other, "data bbbbbbbb"), (old, "unidentified data")):
        made = [make(**own), make(**own | {"seed": 2} | changes)]
        titles = {layout.title(table) for table in tables(*made)}
        assert titles == {
            f"birds, few-shot, 10 classes, tiny, {d}" for d in ("data aaaaaaaa", said)
        }
        text, _ = report.render([write(tmp_path, *made)], "markdown")
        assert said in text and "±" not in text.replace("mean ±", "")
    titles = [layout.title(table) for table in tables(make(**own), make(**own | repainted))]
    assert sorted(title[-8:] for title in titles) == ["11111111", "33333333"]
    older = [make(dataset="Folder", config={"DATASET.ROOT": i}) for i in "ab"]
    titles = [layout.title(table) for table in tables(*older)]
    assert titles == [f"Folder, few-shot, 10 classes, tiny, unidentified data in {i}" for i in "ab"]
    part = {"subset": 100, "data_sha256": sha("4")}  # of the same data set
    assert not any("data" in layout.title(t) for t in tables(make(**own), make(**own | part)))
    assert "data sha256 111111111111" in " ".join(layout.caption(tables(make(**own))[0]))


def test_models_of_one_seed_with_other_prompts_are_rows_of_their_own():
    day = {"created": "2026-01-01T00:00:00+00:00"}
    made = [make(clean=c, prompts_sha256=sha(p)) | day for c, p in ((80, "a"), (70, "b"))]
    made += [make(seed=2, clean=60, prompts_sha256=sha("c")) | day]
    (table,) = tables(*made)
    assert sorted(sorted(row.accuracies()) for row in table.rows) == [[60, 80], [70]]
    assert [row.name for row in table.rows] == ["AdvPT (model=1)", "AdvPT (model=2)"]
    assert any(note.startswith("model 2: 'run1/record.json'") for note in table.notes)
    late = {"created": "2031-01-01T00:00:00+00:00"}
    again = [make(clean=75, seed=seed, prompts_sha256=sha("a")) | late for seed in (1, 5)]
    (table,) = tables(made[0], *again, make(clean=76) | late)  # the same model, tested again
    assert [len(row.accuracies()) for row in table.rows] == [1]
    assert sum(note.startswith("duplicate: ") for note in table.notes) == 3


@pytest.mark.parametrize(
    ("seconds", "shots", "split"), [(3.0, 16, "all"), (0.0, 16, None), (3.0, 0, None)]
)
def test_an_older_record_was_trained_on_its_classes_if_it_took_the_time(seconds, shots, split):
    older = make() | {"shots": shots, "seconds": {"train": seconds, "bank": 0.0, "eval": 1.0}}
    assert trained_split(older) == split
    assert trained_split(older | trained("new")) == "new"


TRAINED = {  # how a model was trained that is tested on all classes of EuroSAT; what is said
    "base": (trained("base"), "the base classes of EuroSAT"),
    "other set": (trained(of="f"), "EuroSAT (data ffffffff)"),
    "other name": (trained(of="f", name="birds") | {"source": "Folder"}, "birds"),
    "usual": (trained(), None),
}


@pytest.mark.parametrize(("facts", "said"), TRAINED.values(), ids=TRAINED)
def test_what_else_a_model_was_trained_on_is_said(facts, said):
    (table,) = tables(make(**trained()), make(seed=2, **facts))
    assert len(table.rows) == (2 if said else 1)
    for counts, words in (([2], "2"), ([2, 3, 4], "2 to 4")):
        short = [facts["trained"] | {"short_classes": count} for count in [None, *counts]]
        (row,) = tables(*(make(seed=i, **facts | {"trained": t}) for i, t in enumerate(short)))
        assert f"fewer shots: AdvPT, 16 shots had fewer images in {words} of 5 classes" in row.notes
    notes = [note for note in table.notes if note.startswith("source: ")]
    assert [note.partition("trained on ")[2] for note in notes] == ([said] if said else [])
