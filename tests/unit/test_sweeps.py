"""Robustness over eps, steps and restarts: what is one curve, what is refused, what is shipped."""

from pathlib import Path

import make_records
import pytest
from make_records import BANK, TRANSFER, WHITE_BOX, listed, make, write, zero_shot
from matplotlib.figure import Figure
from PIL import Image

import advprompt
from advprompt.attacks import specs_from_cfg
from advprompt.cli import curves as command
from advprompt.config import merging
from advprompt.report import curves, drawing
from advprompt.utils.entry import run_tool
from advprompt.utils.errors import UserError
from tests.conftest import REPO


def outcome(correct):
    """An attack's outcome whose change of 0 fits into balls of every size."""
    checks = make_records.outcome(correct)["checks"] | {"max_linf": 0.0}
    return make_records.outcome(correct, checks=checks)


def swept(axis, values, best=50, **same):
    """Attacks over ``values`` that each leave 10 samples fewer than the one before."""
    return [
        WHITE_BOX | same | {axis: f"{v}/255" if axis == "eps" else v} | outcome(best - 10 * i)
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
        WHITE_BOX | {"eps": f"{e:g}/255", "alpha": f"{round(e / 3, 4):g}/255"} | outcome(30)
        for e in (0.25, 1, 4, 16)
    ]
    odd = WHITE_BOX | {"eps": "4/255", "alpha": "2/255"} | outcome(20)
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


APART = [
    *({"dataset": "Caltech101"}, {"split": "new"}, {"weights_sha256": "cd" * 32}),
    *({"subset": 100}, {"classes": 5}, {"protocol": "xd"}, {"shots": 4}),
]


@pytest.mark.parametrize("changes", APART)
def test_other_runs_are_never_joined(changes):
    first, second = swept("steps", (1, 10))
    with pytest.raises(UserError, match="differ in steps alone"):
        build([make(attacks=[first]), make(attacks=[second], **changes)], "steps")


def test_another_setting_of_the_run_is_another_curve():
    settings = [{"TRAINER.ADVPT.N_CTX": n} for n in (4, 8)]
    made = [make(attacks=[a], config=c) for a in swept("steps", (1, 10)) for c in settings]
    ((panel,), _) = build(made, "steps")
    assert len(panel.curves) == 2 and "N_CTX=4" in panel.curves[0].name


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


def test_the_command_draws_it(tmp_path, capsys, monkeypatch):
    sweep, seen, save = swept("eps", (0.25, 1, 4, 16)), [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda f, *a, **k: (seen.append(f), save(f, *a, **k))[1])
    made = [make(attacks=[TRANSFER | outcome(1), *sweep]), zero_shot(attacks=sweep)]
    root, out = write(tmp_path / "runs", *made), str(tmp_path / "eps.png")
    assert run_tool(command.main, [root, "--over", "eps", "--out", out]) == 0
    assert capsys.readouterr().out == f"wrote {out}\n"
    assert Image.open(out).format == "PNG"
    (axes,) = seen[0].axes
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
    ((panel,), notes) = build([make(attacks=[d | outcome(30) for d in described])], axis)
    assert len(panel.curves[0].rows) == len(described) >= 5 and not notes
    ends = {"eps": (0.25, 16), "steps": (1, 1000), "restarts": (1, 20)}[axis]
    assert (panel.values[0], panel.values[-1]) == ends
