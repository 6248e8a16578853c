"""Curves from records: what is one line, what is one panel, what is refused, what is drawn."""

from itertools import product
from pathlib import Path

import pytest
from make_records import BANK, TRANSFER, WHITE_BOX, listed, make, outcome, write, zero_shot
from matplotlib.figure import Figure
from PIL import Image

import advprompt
from advprompt.attacks import specs_from_cfg
from advprompt.cli import curves as command
from advprompt.cli.main import dispatch
from advprompt.config import merging
from advprompt.report import curves, drawing
from advprompt.report.tables import build_tables
from advprompt.utils.entry import run_tool
from advprompt.utils.errors import UserError
from tests.conftest import REPO

DEPTH, REFINER = "TRAINER.NAPTUNING.PROMPT_DEPTH", "TRAINER.NAPTUNING.REFINER.TEXT"
ALPHA = "TRAINER.CAPT.ALPHA"


def run(key, value, seed=1, *, config=None, **changes):
    return make(seed=seed, config={key: value} | (config or {}), **changes)


def panels(made, key, along=()):
    return curves.build_panels(build_tables(listed(*made)), key, along)


def test_a_curve_is_sorted_by_number_and_averages_seeds():
    made = [run(DEPTH, d, s, clean=70 + d + s, white_box=d) for d in (12, 2, 1) for s in (1, 2, 3)]
    ((panel,), notes) = panels(made, DEPTH)
    (curve,) = panel.curves
    assert list(curve.rows) == [1, 2, 12] and panel.numeric and not notes
    assert curve.rows[12].accuracies() == [83, 84, 85]
    assert curve.rows[2].accuracies(panel.table.figures[2][1]) == [2, 2, 2]
    assert curve.name == "AdvPT"


LINES = {  # in what half of the runs differ -> how the lines are named
    "": ({"trainer": "APD"}, ["APD", "AdvPT"]),
    "shots": ({"shots": 1}, [1, 16]),
    "epochs": ({"epochs": 5}, [5, 50]),
    "REFINER.TEXT": ({"config": {REFINER: True}}, ["false", "true"]),
    "trained with": (
        {"train_threat": BANK | {"eps": "4/255"}},
        [f"PGD-10 {eps}/255 (embedding-KL)" for eps in (4, 8)],
    ),
}


@pytest.mark.parametrize("what", LINES)
def test_what_else_differs_is_another_line(what):
    first, values = LINES[what]
    second = {"config": {REFINER: False}} if "config" in first else {}
    made = [run(DEPTH, depth, **other) for depth in (1, 2) for other in (first, second)]
    ((panel,), _) = panels(made, DEPTH)
    names = [f"AdvPT ({what}={value})" for value in values] if what else values
    assert sorted(curve.name for curve in panel.curves) == names
    assert all(list(curve.rows) == [1, 2] for curve in panel.curves)


OTHER_THREAT = [TRANSFER | outcome(40), WHITE_BOX | outcome(30) | {"eps": "4/255"}]
APART = [
    *({"attacks": OTHER_THREAT}, {"dataset": "Caltech101"}, {"split": "new"}),
    *({"backbone": "ViT-B/16"}, {"weights_sha256": "cd" * 32}, {"subset": 100}, {"classes": 5}),
    {"protocol": "xd", "source": "ImageNet"},
]


@pytest.mark.parametrize("changes", APART)
def test_what_may_not_be_compared_is_another_panel(changes):
    made = [run(DEPTH, depth, **other) for depth in (1, 2) for other in ({}, changes)]
    found, _ = panels(made, DEPTH)
    assert [list(panel.curves[0].rows) for panel in found] == [[1, 2], [1, 2]]
    with pytest.raises(UserError, match=f"no two comparable runs differ in {DEPTH}.*1, 2"):
        panels([run(DEPTH, 1), run(DEPTH, 2, **changes)], DEPTH)


VALUES = {
    "words": (["ramp", "conf", "acc"], ["acc", "conf", "ramp"], False),
    "flags": ([True, False], ["false", "true"], False),
    "sizes in 1/255": (["4/255", "0.5/255", "16"], [0.5, 4, 16], True),
    "numbers and words": ([2, "all", 1], [1, 2, "all"], False),
    "nothing and a word": (["", "kl"], ['""', "kl"], False),
}  # what it is -> values of runs, values on the axis, whether these are numbers


@pytest.mark.parametrize("given, axis, numeric", VALUES.values(), ids=VALUES)
def test_values_on_the_axis(given, axis, numeric):
    ((panel,), _) = panels([run(ALPHA, value) for value in given], ALPHA)
    assert sorted(panel.values, key=str) == sorted(axis, key=str)
    assert panel.numeric is numeric
    if numeric:
        assert panel.values == axis


AXES = {
    "ATTACK.TRAIN.EPS": {eps: {"train_threat": BANK | {"eps": f"{eps}/255"}} for eps in (1, 2)},
    "OPTIM.MAX_EPOCH": {n: {"epochs": n} for n in (5, 50)},
    "DATASET.NUM_SHOTS": {1: {"shots": 1}, 16: {"shots": 16}, "all": {"shots": -1}},
}


@pytest.mark.parametrize("key", AXES)
def test_what_records_state_twice_is_an_axis(key):
    made = [make(config={key: value}, **changes) for value, changes in AXES[key].items()]
    ((panel,), _) = panels(made[::-1], key)
    assert panel.values == list(AXES[key]) and [curve.name for curve in panel.curves] == ["AdvPT"]


def test_along_keeps_settings_that_change_together_on_one_curve():
    made = [make(shots=s, epochs=e, config={"OPTIM.MAX_EPOCH": e}) for s, e in ((1, 20), (4, 50))]
    with pytest.raises(UserError, match="--along"):
        panels(made, "DATASET.NUM_SHOTS")
    ((panel,), _) = panels(made, "DATASET.NUM_SHOTS", ["OPTIM.MAX_EPOCH"])
    assert panel.values == [1, 4]
    twins = [*made, make(shots=4, epochs=9, config={"OPTIM.MAX_EPOCH": 9})]
    with pytest.raises(UserError, match="both have DATASET.NUM_SHOTS=4"):
        panels(twins, "DATASET.NUM_SHOTS", ["OPTIM.MAX_EPOCH"])


OWN = "TRAINER.SOMEBODYS.DEPTH"  # a setting of one's own method, without a default here


def test_lone_points_are_left_out_and_told():
    made = [run(OWN, 1), run(OWN, 2), run(OWN, 12, trainer="CoOp"), make(trainer="APD")]
    ((panel,), notes) = panels(made, OWN)
    assert [curve.name for curve in panel.curves] == ["AdvPT"]
    assert any("CoOp" in note and f"{OWN}=12 alone" in note for note in notes)
    assert any("APD" in note and f"has no {OWN}" in note for note in notes)


def test_zero_shot_is_a_reference():
    ((panel,), notes) = panels([run(DEPTH, 1), run(DEPTH, 2), zero_shot()], DEPTH)
    assert [row.trainer for row in panel.references] == ["ZeroshotCLIP"] and not notes


@pytest.mark.parametrize(
    ("alphas", "rule", "points"),
    [
        (("0.25", "0.5", "1"), "eps/4", [1, 2, 4]),
        (("0.3333", "0.6667", "1.3333"), "eps/3", [1, 2, 4]),  # as records round it
        (("0.75", "1.5", "3"), "0.75 eps", [1, 2, 4]),
        (("0.25", "0.5", "1.03"), "eps/4", [1, 2]),
        (("1", "1", "1"), "1/255", [1, 2, 4]),
        (("1", "1", "4"), "1/255", [1, 2]),  # as many steps as shares
    ],
)
def test_attacks_of_one_rule_for_the_step_are_a_curve_over_eps(alphas, rule, points):
    attacks = [
        WHITE_BOX | {"eps": f"{eps}/255", "alpha": f"{alpha}/255"} | outcome(60 - eps)
        for eps, alpha in zip((1, 2, 4), alphas, strict=True)
    ]
    (panel,), _ = curves.attack_panels(listed(make(attacks=attacks)), "eps")
    (curve,) = panel.curves
    assert list(curve.rows) == points and panel.table.first["attacks"][0]["alpha"] == rule
    (_, (_, signature)) = panel.figures
    assert [row.accuracies(signature) for row in curve.rows.values()] == [[60 - e] for e in points]


def test_a_sweep_of_one_attack_is_refused():
    with pytest.raises(curves.NothingVaries, match=r"\(found: 1\)"):
        curves.attack_panels(listed(make()), "restarts")


UNKNOWN = "no completed record has a setting '{}'"
REFUSED = {
    "TRAINER.NAPTUNING.PROMPT_DEPT": "Did you mean TRAINER.NAPTUNING.PROMPT_DEPTH",
    "TRAINER.CAPT.ALPHA": UNKNOWN,
    "SEED": f"{UNKNOWN} in which its runs differ",
    "ATTACK.TEST.EPS": f"{UNKNOWN} in which its runs differ",
}


@pytest.mark.parametrize("key, words", REFUSED.items(), ids=REFUSED)
def test_settings_that_are_no_axis_are_refused(key, words, tmp_path, capsys):
    seeds = [run(DEPTH, depth, seed, config={"SEED": seed}) for depth in (1, 2) for seed in (1, 2)]
    root, out = write(tmp_path / "runs", *seeds), tmp_path / "curve.png"
    assert run_tool(command.main, [root, "--over", key, "--out", str(out)]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1
    assert words.format(key) in captured.err and captured.out == "" and not out.exists()


def watched(monkeypatch):
    """Return the list of the figures that are drawn from here on."""
    seen, save = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda f, *a, **k: (seen.append(f), save(f, *a, **k))[1])
    return seen


def drawn(panel_list, key, monkeypatch, tmp_path):
    """Draw, and return the figure."""
    seen = watched(monkeypatch)
    path = drawing.draw(tmp_path / "curve.png", panel_list, key)
    assert Image.open(path).width > 800
    return seen[0]


def words_of(axes):
    texts = [t.get_text() for t in axes.texts] + [axes.get_title(loc="left"), axes.get_xlabel()]
    legend = axes.get_legend()
    texts += [t.get_text() for t in legend.get_texts()] + [legend.get_title().get_text()]
    return " ".join(" ".join(texts).split())


def test_the_picture_shows_means_intervals_and_threat_models(monkeypatch, tmp_path):
    same = {"subset": 100, "transfer": 40}
    made = [
        run(DEPTH, d, s, config={REFINER: refiner}, clean=78 + s, white_box=10 * d, **same)
        for d, s, refiner in product((1, 2, 3), (1, 2, 3), (True, False))
    ]
    reference = zero_shot(clean=50, transfer=20, white_box=5, subset=100)
    found, notes = panels([*made, reference], DEPTH)
    assert not notes
    (axes,) = drawn(found, DEPTH, monkeypatch, tmp_path).axes
    lines = [x for x in axes.lines if len(x.get_xdata()) == 3 and x.get_linestyle() != "None"]
    assert len(lines) == 2 * 3  # curves x (clean, two attacks)
    heights = sorted(tuple(line.get_ydata()) for line in lines)
    assert heights[0] == (10, 20, 30) and heights[-1] == (80, 80, 80)
    # the band of clean accuracy is 80 +- 4.30 / sqrt(3)
    bands = [c.get_paths()[0].vertices[:, 1] for c in axes.collections if len(c.get_paths()) == 1]
    assert any(abs(band.max() - 82.484) < 1e-2 for band in bands)
    flat = [line.get_ydata()[0] for line in axes.lines if len(line.get_xdata()) == 2]
    assert sorted(set(flat) & {50, 20, 5}) == [5, 20, 50]
    text = words_of(axes)
    told = ("REFINER.TEXT=true", "ZeroshotCLIP", "end-to-end PGD-100 1/255", "n = 3", DEPTH)
    told += ("TEST.SUBSET 100", "shots: 16", "trained with: PGD-10", "95 % t-interval")
    for wanted in (*told, "never saw the learned prompt", "EuroSAT, few-shot"):
        assert wanted in text, wanted


@pytest.mark.parametrize(
    ("clean", "top"), [((40, 44), 52 * 1.06 + 2), ((50, 50), 55), ((96, 97), 100)]
)
def test_the_axis_holds_the_means_and_ten_points_of_an_interval(clean, top, monkeypatch, tmp_path):
    made = [
        run(DEPTH, depth, seed, clean=correct, transfer=0, white_box=0)
        for depth in (1, 2)
        for seed, correct in enumerate(clean)
    ]
    found, _ = panels(made, DEPTH)
    (axes,) = drawn(found, DEPTH, monkeypatch, tmp_path).axes
    assert axes.get_ylim() == pytest.approx((0, top))


def test_doubling_values_are_spread_and_words_are_not_joined(monkeypatch, tmp_path):
    vectors = [run("TRAINER.ADVPT.N_CTX", n) for n in (1, 2, 4, 8, 16, 32, 50)]
    found, _ = panels(vectors, "TRAINER.ADVPT.N_CTX")
    (axes,) = drawn(found, "TRAINER.ADVPT.N_CTX", monkeypatch, tmp_path).axes
    assert axes.get_xscale() == "log"
    assert [t.get_text() for t in axes.get_xticklabels()] == "1 2 4 8 16 32 50".split()
    found, _ = panels([run("TRAINER.ADVPT.N_CTX", n) for n in (1, 2, 6)], "TRAINER.ADVPT.N_CTX")
    (axes,) = drawn(found, "TRAINER.ADVPT.N_CTX", monkeypatch, tmp_path).axes
    assert axes.get_xscale() == "linear"  # where the widest gap is four times the narrowest
    found, _ = panels([run(ALPHA, rule) for rule in ("conf", "$acc$")], ALPHA)
    (axes,) = drawn(found, ALPHA, monkeypatch, tmp_path).axes
    assert {line.get_linestyle() for line in axes.lines if len(line.get_xdata())} <= {"None"}
    assert r"\$acc\$" in [t.get_text() for t in axes.get_xticklabels()]


def test_the_command(tmp_path, capsys):
    made = [run(DEPTH, 1), run(DEPTH, 2), make(status="running", clean=None, attacks=[])]
    root, out = write(tmp_path / "runs", *made), tmp_path / "depth.png"
    argv = ["curves", root, "--over", DEPTH, "--per-figure", "--out", str(out)]
    assert run_tool(dispatch, argv) == 0
    captured = capsys.readouterr()
    assert captured.out == f"wrote {out}\n" and "unfinished" in captured.err
    width, height = Image.open(out).size
    assert height > 1.5 * width  # a panel for each figure
    assert run_tool(command.main, [str(tmp_path / "no"), "--over", DEPTH]) == 2


def test_a_panel_per_figure_shows_one_alone(tmp_path, monkeypatch):
    names = [f"Method{i:02}" for i in range(10)]  # more than there are colours
    made = [make(trainer=name, shots=shots, clean=50 + shots) for name in names for shots in (1, 4)]
    found, _ = panels(made, "DATASET.NUM_SHOTS")
    split = curves.per_figure(found)
    assert [panel.only for panel in split] == [name for name, _ in found[0].table.figures]
    figure = drawn(split, "shots", monkeypatch, tmp_path)
    assert [axes.get_ylabel().partition(",")[0] for axes in figure.axes][0] == "clean"
    for axes in figure.axes:
        lines = [line for line in axes.lines if len(line.get_xdata()) == 2]
        looks = {(line.get_color(), line.get_linestyle()) for line in lines if line.get_marker()}
        assert len(looks) >= len(names)
        assert [text.get_text() for text in axes.get_legend().texts] == names
        handles = axes.get_legend().legend_handles
        assert {(h.get_color(), h.get_linestyle()) for h in handles} <= looks
        assert all(h.get_marker() not in ("", "None") for h in handles)


# --- over eps, steps and restarts of the test attack ---------------------------------------------


def left(correct):
    """An attack's outcome whose change of 0 fits into balls of every size."""
    return outcome(correct, checks=outcome(correct)["checks"] | {"max_linf": 0.0})


def swept(axis, values, best=50, **same):
    """Attacks over ``values`` that each leave 10 samples fewer than the one before."""
    return [
        WHITE_BOX | same | {axis: f"{v}/255" if axis == "eps" else v} | left(best - 10 * i)
        for i, v in enumerate(values)
    ]


def build(made, axis):
    return curves.attack_panels(listed(*made), axis)


def points(curve, panel):
    (_, (_, signature)) = panel.table.figures
    return {v: row.accuracies(signature) for v, row in curve.rows.items()}


@pytest.mark.parametrize("axis", curves.AXES)
def test_one_record_that_sweeps_is_a_curve(axis):
    ((panel,), notes) = build([make(attacks=swept(axis, (8, 1, 2)))], axis)
    (curve,) = panel.curves
    assert points(curve, panel) == {1: [40], 2: [30], 8: [50]} and not notes
    assert list(curve.rows) == [1, 2, 8] and panel.numeric
    (_, (heading, _)) = panel.table.figures
    assert ("1..8/255" if axis == "eps" else "1..8") in " ".join(drawing.facts_of(panel))
    assert heading.startswith("end-to-end PGD-")


def test_several_records_of_one_model_are_one_curve():
    made = [make(attacks=[a], seed=s) for s in (1, 2) for a in swept("eps", (1, 4))]
    ((panel,), _) = build(made, "eps")
    (curve,) = panel.curves
    assert points(curve, panel) == {1: [50, 50], 4: [40, 40]}


def test_prompts_of_unknown_source_share_no_line():
    made = [make(attacks=swept("eps", (1, 4)), seed=s, protocol="xd") for s in (1, 2)]
    ((panel,), _) = build(made, "eps")
    assert [points(curve, panel) for curve in panel.curves] == [{1: [50], 4: [40]}] * 2


def test_models_are_lines_and_the_undefended_one_is_grey():
    sweep = swept("eps", (1, 2, 4))
    made = [make(attacks=sweep), make(attacks=sweep, trainer="APD"), zero_shot(attacks=sweep)]
    made.append(make(attacks=sweep, train_threat=BANK | {"eps": "4/255"}, trainer="APD"))
    ((panel,), _) = build(made, "eps")
    assert [c.undefended for c in panel.curves] == [False, False, False, True]
    names = [c.name for c in panel.curves]
    assert len(set(names)) == 4 and names[-1] == "ZeroshotCLIP" and "4/255" in " ".join(names)


def test_steps_that_grow_with_eps_are_one_curve():
    attacks = [
        WHITE_BOX | {"eps": f"{e:g}/255", "alpha": f"{round(e / 3, 4):g}/255"} | left(30)
        for e in (0.25, 1, 4, 16)
    ]
    odd = WHITE_BOX | {"eps": "4/255", "alpha": "2/255"} | left(20)
    ((panel,), notes) = build([make(attacks=[*attacks, odd])], "eps")
    (curve,) = panel.curves
    assert list(curve.rows) == [0.25, 1, 4, 16]
    assert points(curve, panel)[4] == [30]
    assert any("eps=4 alone" in note for note in notes)
    assert "alpha eps/3" in " ".join(drawing.facts_of(panel))


OTHER = [
    *({"restarts": 5}, {"steps": 10}, {"objective": "margin"}, {"drop": True}, {"start": "zero"}),
    *({"norm": "l2"}, {"name": "mi"}, {"target": "frozen_prompt"}, {"kwargs": {"momentum": 0.5}}),
    {"defence": "jpeg, quality 75, unseen by the attack"},
]


@pytest.mark.parametrize("other", OTHER)
def test_attacks_that_differ_in_more_are_never_joined(other):
    first, second = swept("eps", (1, 4))
    with pytest.raises(UserError, match="differ in eps alone.*1, 4.*sweep_eps"):
        build([make(attacks=[first, second | other])], "eps")
    both = [make(attacks=[*swept("eps", (1, 4)), *swept("eps", (1, 4), 40, **other)])]
    found, _ = build(both, "eps")
    assert sorted(points(p.curves[0], p)[1] for p in found) == [[40], [50]]


@pytest.mark.parametrize("changes", [*APART[1:], {"shots": 4}])
def test_attacks_of_other_runs_are_never_joined(changes):
    first, second = swept("steps", (1, 10))
    with pytest.raises(UserError, match="differ in steps alone"):
        build([make(attacks=[first]), make(attacks=[second], **changes)], "steps")


def test_the_same_test_twice_counts_once_and_a_contradiction_is_told():
    sweep = swept("eps", (1, 4))
    ((panel,), notes) = build([make(attacks=sweep), make(attacks=sweep[:1])], "eps")
    assert points(panel.curves[0], panel)[1] == [50] and not notes
    other = make(attacks=[sweep[0] | {"correct": 33}]) | {"created": "2031-01-01T00:00:00+00:00"}
    ((panel,), notes) = build([make(attacks=sweep), other], "eps")
    assert points(panel.curves[0], panel)[1] == [33]
    assert any(note.startswith("duplicate") for note in notes)
    sweep[0]["warnings"] = ["the gradient is masked"]
    _, notes = build([make(attacks=sweep)], "eps")
    assert any("eps=1" in note and "the gradient is masked" in note for note in notes)


def test_the_command_draws_attacks(tmp_path, capsys, monkeypatch):
    sweep, figures = swept("eps", (0.25, 1, 4, 16)), watched(monkeypatch)
    made = [make(attacks=[TRANSFER | left(1), *sweep]), zero_shot(attacks=sweep)]
    root, out = write(tmp_path / "runs", *made), str(tmp_path / "eps.png")
    assert run_tool(command.main, [root, "--over", "eps", "--out", out]) == 0
    assert capsys.readouterr().out == f"wrote {out}\n"
    assert Image.open(out).format == "PNG"
    (axes,) = figures[0].axes
    assert axes.get_xlabel() == "eps in 1/255" and axes.get_xscale() == "log"
    drawn = [line for line in axes.lines if line.get_linestyle() != "None"]
    curve = [line for line in drawn if tuple(line.get_ydata()) == (50, 40, 30, 20)]
    assert {line.get_color() for line in curve} == {drawing.COLOURS[0], drawing.REFERENCE}
    assert run_tool(command.main, [root, "--over", "restarts", "--out", out + "x"]) == 2
    assert "sweep_restarts.yaml" in capsys.readouterr().err
    assert run_tool(command.main, [root, "--over", "eps", "--along", "OPTIM.LR"]) == 2
    assert not Path(out + "x").exists()


@pytest.mark.parametrize("axis", curves.AXES)
def test_the_shipped_sweeps_differ_in_their_axis_alone(axis):
    from dassl.config import get_cfg_default

    cfg = get_cfg_default()
    advprompt.extend_cfg(cfg)
    merging.merge_file(cfg, REPO / f"configs/attacks/sweep_{axis}.yaml")
    described = [s.describe() for s in specs_from_cfg(cfg.ATTACK.TEST, key="ATTACK.TEST")]
    ((panel,), notes) = build([make(attacks=[d | left(30) for d in described])], axis)
    assert len(panel.curves[0].rows) == len(described) >= 5 and not notes
    ends = {"eps": (0.25, 16), "steps": (1, 1000), "restarts": (1, 20)}[axis]
    assert (panel.values[0], panel.values[-1]) == ends
