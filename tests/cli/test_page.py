"""The HTML page: everything on it, nothing fetched, no record that can inject; in a browser too."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
import torch
from make_records import WHITE_BOX, listed, make, outcome, write, zero_shot
from PIL import Image

from advprompt import records
from advprompt.attacks import AttackSpec
from advprompt.cli import report as command
from advprompt.evaluation import pictures
from advprompt.report import drawing, layout, page, transfer
from advprompt.report import pictures as gallery
from advprompt.report import render as report
from advprompt.report.charts import build_charts, build_planes
from advprompt.report.formats import Block, Column
from advprompt.report.tables import build_tables
from advprompt.utils.entry import run_tool
from advprompt.utils.io import write_json

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or "/usr/bin/chromium"
FLAGS = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking"
FLAGS += " --disable-component-update --disable-sync --enable-logging=stderr --disable-quic"
FLAGS += " --allow-file-access-from-files"
HOSTILE = "\"><script>hacked=1</script><img src=x onerror=hacked=1>' $x$ &amp; <b>"
SPEC = AttackSpec("pgd", 1 / 255, 1 / 255, 20, 1, "uniform", "ce", "end_to_end")


class Counter(HTMLParser):
    """Elements by name, and every attribute's value."""

    def __init__(self, page: str):
        super().__init__()
        self.tags, self.values, self.names = {}, {}, set()
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags[tag] = self.tags.get(tag, 0) + 1
        for name, value in attrs:
            self.names.add(name)
            self.values.setdefault((tag, name), []).append(value)


def keep_examples(folder, *names, n=4, size=24):
    clean = torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(0))
    pictures.save_examples(
        folder,
        clean=clean,
        adversarial=(clean + 0.02).clamp(0, 1),
        classnames=names or ("a_cat", "a_dog"),
        labels=torch.zeros(n, dtype=torch.long),
        before=torch.tensor([[0.9, 0.1]] * n),
        after=torch.tensor([[0.2, 0.8]] * n),
        spec=SPEC,
    )


def matrix(*names, **changes):
    run = {"backbone": "tiny", "weights_sha256": "ab" * 32, "clean": {"n": 100, "correct": 90}}
    rows = [{"correct": [30 + i] * len(names), "warnings": []} for i in range(len(names))]
    facts = {"kind": "transfer", "schema": 1, "status": "completed", "n": 100}
    facts |= {"dataset": "Shapes", "subset": None, "runs": [run | {"name": n} for n in names]}
    return facts | {"tables": [{"attack": WHITE_BOX, "rows": rows, "warnings": []}]} | changes


@pytest.fixture
def output(tmp_path):
    """Few-shot runs over shots, a sweep over eps, an ablation, both halves, pictures, a matrix."""
    folder = tmp_path / "output"
    checks = outcome(1)["checks"] | {"max_linf": 0.0}
    sweep = [
        WHITE_BOX | {"eps": f"{e}/255", "alpha": f"{e / 4}/255"} | outcome(60 - e, checks=checks)
        for e in (1, 2, 4)
    ]
    half = {"protocol": "base2new", "classes": 5}
    depth = "TRAINER.NAPTUNING.PROMPT_DEPTH"
    few = [make(trainer=t, shots=n, clean=60 + n) for t in ("APD", "FAP") for n in (1, 16)]
    few += [zero_shot(), make(dataset="Shapes", attacks=sweep)]
    few += [make(trainer="NAPTuning", dataset="Shapes", config={depth: d}) for d in (1, 6)]
    few += [make(split=s, config={"DATASET.SUBSAMPLE_CLASSES": s}, **half) for s in ("base", "new")]
    cut = make(seed=2, status="running", clean=None, attacks=[])
    write(folder, *few, cut, make(trainer="APD", seed=2))
    keep_examples(folder / "run0")
    write_json(folder / "transfer.json", matrix("APD", "FAP"))
    return folder


def page_of(*folders, **options):
    text, remarks = report.render(map(str, folders), "html", **options)
    assert not remarks
    return text


def test_everything_is_on_the_page(output):
    page = page_of(output)
    found = Counter(page)
    for section in ("tables", "curves", "transfer", "costs", "pictures", "problems"):
        assert f'<section id="{section}"' in page and f'href="#{section}"' in page
    assert "published" not in page and 'id="published-figures"' in page_of(output, paper=True)
    assert found.tags["table"] == 4 + 1 + 4  # tables, transfer, costs
    assert page.count('<figure class="chart">') == 3 + 1 + 1  # shots x 3 figures, eps, depth
    assert found.tags["img"] == 5 + 3 * 3
    assert "3 of 4 kept images" in page and "1 of the 1 models that have pictures" in page
    assert "never saw the learned prompt" in page and "5 base and 5 new classes" in page
    assert re.search(r"unfinished: .*run10", page) and "missing" in page
    assert "predicted a cat, 90\xa0%" in page and "predicted a dog, 80\xa0%" in page


def test_nothing_is_fetched(output):
    page = page_of(output, paper=True)
    found = Counter(page)
    assert all(uri.startswith("data:image/png;base64,") for uri in found.values["img", "src"])
    assert all(link.startswith("#") for link in found.values["a", "href"])
    assert not {"link", "iframe", "object", "embed", "base"} & set(found.tags)
    assert found.tags["script"] == 1 and ("script", "src") not in found.values
    policy = found.values["meta", "content"][0]
    assert policy.startswith("default-src 'none'; img-src data:")
    for tag in ("style", "script"):  # it allows our own
        text = re.search(rf"<{tag}>(.*?)</{tag}>", page, re.S)[1]
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


def test_robust_over_clean_accuracy_comes_first(output, tmp_path):
    text = page_of(output)
    assert text.index("</header>") < text.index('class="plane"') < text.index('id="tables"')
    weaker = dict(clean=90, white_box=60, shots=4)
    made = [make(clean=60 + s, white_box=30, seed=s) for s in (1, 2)] + [make(**weaker)]
    made += [make(trainer="CoOp", clean=70, white_box=5, train_threat=None)]
    made += [make(trainer=f"Adv{i}", clean=65, white_box=12) for i in range(5)]
    (plane,) = build_planes(build_tables(listed(*made, zero_shot(clean=75, white_box=8))))
    dots = {dot["name"]: dot for dot in plane.dots}
    kinds = {"AdvPT": "attacked", "CoOp": "clean", "ZeroshotCLIP": "untrained"}
    assert {name: dots[name]["kind"] for name in kinds} == kinds and len(dots) == 8
    assert plane.attack == "end-to-end PGD-100 1/255"  # not the transfer attack
    assert (plane.x, plane.y) == ((50, 80), (0, 30))
    assert (dots["CoOp"]["x"], dots["CoOp"]["y"]) == ((70, 0), (5, 0))
    assert dots["AdvPT"]["x"] == (61.5, pytest.approx(6.353, rel=1e-3))  # the t-interval
    assert dots["AdvPT"]["words"] == "clean 61.5 ± 6.4, robust 30.0 ± 0.0"
    assert not build_planes(build_tables(listed(make(), make(**weaker))))  # one trainer
    write(tmp_path / "made", *made, zero_shot(clean=75, white_box=8))
    drawn = page_of(tmp_path / "made")  # 400 wide for 30 points, 274 high for 30
    assert 'class="clean" cx="308.7" cy="240.3"' in drawn and "CoOp: clean 70.0" in drawn
    assert 'x1="110.6" x2="280.0" y1="12.0" y2="12.0"' in drawn


def hostile(folder):
    """Every text that a record, pictures or a matrix can hold is markup."""
    attacks = [WHITE_BOX | {"name": HOSTILE} | outcome(3, warnings=[HOSTILE])]
    texts = dict.fromkeys(("trainer", "backbone", "device"), HOSTILE) | {"attacks": attacks}
    texts["train_threat"] = WHITE_BOX | {"name": HOSTILE, "start": HOSTILE}
    for i, (shots, dataset) in enumerate([(1, HOSTILE), (2, HOSTILE), (1, "\ud800\u202e")]):
        config = {"TRAINER.X": HOSTILE, "OPTIM.NAME": HOSTILE + str(i // 2)}
        record = make(shots=shots, config=config) | texts | {"dataset": dataset}
        target = folder / f"{'<i>' * (i + 1)}" / records.FILE_NAME
        target.parent.mkdir(parents=True)
        target.write_text(json.dumps(record))
        keep_examples(target.parent, HOSTILE, "other")
    write_json(folder / "transfer.json", matrix(HOSTILE, "b", dataset=HOSTILE))
    (folder / "transfer<b>.json").write_text('{"kind": "transfer", "schema": "<script>"}')


def test_no_text_of_a_record_is_markup(tmp_path, capsys):
    folder, plain = tmp_path / "hostile", tmp_path / "plain"
    hostile(folder)
    write(plain, make())
    assert run_tool(command.main, [str(folder), "--format", "html", "--out", f"{plain}.html"]) == 0
    page = (tmp_path / "plain.html").read_text(encoding="utf-8")
    found = Counter(page)
    assert found.tags["script"] == 1 and "b" in found.tags  # our own, of the notes
    assert "i" not in found.tags and "onerror" not in found.names
    assert "hacked=1&lt;/script&gt;" in page and "<script>hacked" not in page
    assert all(uri.startswith("data:") for uri in found.values["img", "src"])
    capsys.readouterr()


def charted(*made):
    charts, problems = build_charts(listed(*made), build_tables(listed(*made)))
    return len(charts), problems


def test_runs_that_no_curve_can_hold_are_problems(tmp_path):
    def run(shots, epochs):
        return make(shots=shots, epochs=epochs, config={"OPTIM.MAX_EPOCH": epochs})

    assert charted(run(1, 50), run(16, 100)) == (3, [])  # epochs may go along with the shots
    assert charted(run(1, 50), run(16, 100), make(shots=4))[0] == 3  # unset in one of them
    conflict = [run(1, 50), run(16, 100), run(16, 200)]
    count, (problem,) = charted(*conflict)
    assert count == 0 and "both have DATASET.NUM_SHOTS=16" in problem
    count, problems = charted(*conflict, run(4, 200))  # which make a curve without the others
    assert count == 3 and len(problems) == 2
    assert all("left out: AdvPT" in problem for problem in problems)
    write(tmp_path, *conflict)
    assert "both have DATASET.NUM_SHOTS" in page_of(tmp_path).partition('id="problems"')[2]
    depths = [(4, 0.1), (16, 0.1), (16, 0.2)]
    made = [make(config={"TRAINER.ADVPT.N_CTX": n, "OPTIM.LR": lr}) for n, lr in depths]
    count, (problem,) = charted(*made)
    assert count == 1 and "curves over TRAINER.ADVPT.N_CTX: EuroSAT" in problem
    assert "left out: AdvPT" in problem and "N_CTX=16 alone" in problem
    checks = outcome(1)["checks"] | {"max_linf": 0.0}
    attacks = [
        WHITE_BOX | {"eps": f"{e}/255"} | outcome(60 - e, checks=checks, warnings=["odd"])
        for e in (1, 4)
    ]
    count, (problem,) = charted(make(attacks=attacks), make(trainer="APD", attacks=attacks[:1]))
    assert count == 1 and "left out: APD" in problem and "eps=1 alone" in problem
    assert problem.count("curves over eps") == 1
    assert charted(make(), make(seed=2), make(trainer="APD"), zero_shot()) == (0, [])


def test_charts_stand_below_their_own_facts():
    made = [make(shots=n) for n in (1, 16)]
    made += [make(dataset="Shapes", shots=n, seed=s) for n in (1, 16) for s in (1, 2)]
    charts, _ = build_charts(listed(*made), build_tables(listed(*made)))
    ((section, groups),) = page._drawn(charts)
    assert section == "Over shots" and [len(alike) for _, alike in groups] == [3, 3]
    for (facts, alike), chart in zip(groups, (charts[0], charts[3]), strict=True):
        assert facts == drawing.facts_of(chart.panel)
        title, names = layout.title(chart.panel.table), [n for n, _ in chart.panel.table.figures]
        assert [drawn["title"] for _, _, drawn in alike] == [f"{title}, {name}" for name in names]


def test_the_untrained_model_is_a_line_of_an_ablation():
    made = [make(config={"TRAINER.ADVPT.N_CTX": n}) for n in (4, 16)] + [zero_shot()]
    ((chart,), _) = build_charts(listed(*made), build_tables(listed(*made)))
    assert [row.trainer for row in chart.panel.references] == ["ZeroshotCLIP"]
    assert chart.draw()["title"] == layout.title(chart.panel.table)


@pytest.mark.parametrize("drop", [False, True])
def test_a_matrix_in_figures(drop):
    made = matrix("APD", "FAP")
    made["tables"][0]["attack"] = WHITE_BOX | {"drop": drop}
    (sheet,) = transfer.sheets_of(made)
    (block,) = sheet.blocks
    rows = [["clean", "90.0", "90.0"], ["APD", "30.0", "30.0"], ["FAP", "31.0", "31.0"]]
    assert block.rows == rows and block.marked == {(1, 1), (2, 2)}
    assert any("DROP False" in fact for fact in sheet.facts) == drop
    assert "backbone of FAP: tiny, weights sha256 abababababab" in sheet.facts


@pytest.mark.parametrize(("size", "short"), [(30, " short"), (31, "")])
def test_columns_are_set_apart_by_group_and_length(size, short):
    columns = [Column("a", left=True), Column("b", "x"), Column("c", "x"), Column("d", left=True)]
    block = Block(columns, [["1", "2", "3", "4"], ["w" * size, "2", "3", "4"]])
    assert [page._look(block, j) for j in range(4)] == [
        f"left{short}",
        "edge",
        "",
        "left short edge",
    ]


def test_damaged_pictures_and_matrices_are_problems(output):
    (output / "run1" / pictures.EXAMPLES).write_bytes(b"no tensors")
    wrong = [matrix("APD", "FAP", **c) for c in ({"status": "running"}, {"runs": [{}]})]
    for i, content in enumerate([*wrong, ["something else"]], 2):
        write_json(output / f"transfer_{i}.json", content)
    problems = page_of(output).partition('id="problems"')[2]
    for name in (f"run1/{pictures.EXAMPLES}", "transfer_2", "transfer_3", "transfer_4"):
        assert name in problems, name


def test_many_runs_show_some_pictures_and_say_so(tmp_path, monkeypatch):
    monkeypatch.setattr(gallery, "RUNS", 2)
    made = [make(trainer=f"T{i:02}", seed=s) for i in range(4) for s in (1, 2)]
    found = {}
    for i, record in enumerate(made):
        found[tmp_path / f"run{i}" / records.FILE_NAME] = record
        keep_examples(tmp_path / f"run{i}", n=1, size=8)
    shown = gallery.build_gallery(found)
    assert (len(shown.shown), shown.runs, shown.problems) == (2, 4, [])
    titles = {(run["about"], len(run["examples"])) for run in shown.shown}
    assert titles == {("16 shots, seed 1", 1)}


def test_other_settings_are_other_models_with_pictures(tmp_path):
    sizes = [{"config": {"TRAINER.ADVPT.N_CTX": n}} for n in (4, 16)]
    threats = [{"trainer": "APD", "train_threat": t} for t in (None, WHITE_BOX)]
    shifts = [
        {"trainer": "CoOp", "protocol": "xd", "source": s, "seed": n}
        for n, s in enumerate(("ImageNet", "Shapes", None, None), 1)
    ]
    found = {}
    for i, changes in enumerate([*sizes, sizes[0] | {"seed": 2}, *threats, *shifts]):
        found[tmp_path / f"run{i}" / records.FILE_NAME] = make(**changes)
        keep_examples(tmp_path / f"run{i}", n=1, size=8)
    shown = gallery.build_gallery(found)
    assert (shown.runs, shown.problems) == (8, [])
    told = [run["title"].partition(" (")[2] for run in shown.shown]
    sources = (f'source="{name}")' for name in ("ImageNet", "Shapes", "unknown 1", "unknown 2"))
    threats = (f"trained with {name})" for name in ("PGD-100 1/255", "clean images"))
    assert sorted(told) == ["N_CTX=16)", "N_CTX=4)", *sources, *threats]


def test_of_seventeen_models_sixteen_are_shown(tmp_path):
    for i in range(17):
        write(tmp_path / f"{i}", make(trainer=f"T{i:02}"))
        keep_examples(tmp_path / f"{i}" / "run0", n=1, size=8)
    found = {path: records.read_record(path) for path in tmp_path.rglob(records.FILE_NAME)}
    shown = gallery.build_gallery(found)
    assert (len(shown.shown), shown.runs) == (16, 17)
    some = dict(list(found.items())[:16])
    assert len(gallery.build_gallery(some).shown) == 16


@pytest.mark.parametrize(("size", "small"), [((99, 9), True), ((9, 100), False)])
def test_small_images_are_shown_with_hard_edges(size, small, tmp_path, monkeypatch):
    clean = torch.zeros(1, 3, *size)
    one = {"labels": ["a"], "before": [("a", 0.5)], "after": [("a", 0.5)], "title": "t"}
    monkeypatch.setattr(
        gallery.kept, "load_examples", lambda p: one | {"clean": clean, "adversarial": clean}
    )
    shots = {0: "zero-shot", -1: "all shots", 1: "1 shot", 2: "2 shots"}
    for number, words in shots.items():
        record = {"shots": number, "seed": 3, "split": "new"}
        shown = gallery._show(tmp_path, record, "")
        assert shown["about"] == f"{words}, seed 3, new classes" and shown["title"] == "t"
    assert [example["small"] for example in shown["examples"]] == [small]


def test_a_bar_is_for_three_or_more():
    assert [page._progress([0] * n, "x").disable for n in (2, 3)] == [True, False]


@pytest.mark.parametrize("given, shown", [((300, 200), (107, 160)), ((8, 8), (8, 8))])
def test_large_pictures_shrink(given, shown):
    colour = torch.tensor([1.1, 0.4, -0.1])[:, None, None].expand(3, *given)
    png = Image.open(io.BytesIO(base64.b64decode(gallery.data_uri(colour).partition(",")[2])))
    assert png.size == shown and png.getpixel((0, 0)) == (255, 102, 0)


def test_a_page_is_not_put_between_marks(output, tmp_path, capsys):
    argv = [str(output), "--format", "html", "--out", str(tmp_path / "x.md"), "--mark", "a"]
    assert run_tool(command.main, argv) == 2
    assert "--mark" in capsys.readouterr().err and not (tmp_path / "x.md").exists()


# the page inside another, on a phone's width, which asks the browser what it made of it
PROBE = """<!doctype html><body><pre id=result>unfinished</pre><script>
const frame = document.createElement("iframe");
frame.width = 390; frame.height = 900; frame.src = "page.html";
frame.onload = () => {
  const inner = frame.contentDocument, images = [...inner.images];
  const bodies = [...inner.querySelectorAll("table.sortable tbody")];
  const longest = bodies.sort((a, b) => b.rows.length - a.rows.length)[0].parentElement;
  const button = longest.querySelectorAll("thead tr:last-child button")[3];
  const root = inner.documentElement;  // its own width: a scroll bar may take some of the frame's
  const cells = () => [...longest.tBodies[0].rows].map(row => row.cells[3].textContent);
  button.click(); const up = cells().map(parseFloat);
  button.click(); const down = cells().map(parseFloat);
  document.getElementById("result").textContent = "done " + JSON.stringify({
    tables: inner.querySelectorAll("table").length,
    buttons: inner.querySelectorAll("th button").length,
    broken: images.filter(image => !image.naturalWidth).length, images: images.length,
    overflow: root.scrollWidth - root.clientWidth, width: root.clientWidth,
    up, down, hacked: typeof frame.contentWindow.hacked,
    names: [...inner.querySelectorAll(".plane svg")].map(svg => [...svg.querySelectorAll(".name")]
      .map(name => name.getBBox()).map(box => [box.x, box.y, box.width])),
  });
};
document.body.append(frame);
</script>"""


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which(CHROMIUM), reason="chromium is not installed")
def test_a_browser_shows_it_whole(output, tmp_path):
    hostile(tmp_path / "hostile")
    page, probe = tmp_path / "page.html", tmp_path / "probe.html"
    report.write(page, page_of(output, tmp_path / "hostile", paper=True))
    probe.write_text(PROBE)
    words = ["--dump-dom", "--virtual-time-budget=60000", f"--user-data-dir={tmp_path / 'profile'}"]
    command = [CHROMIUM, *FLAGS.split(), *words, probe.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=True)
    found = json.loads(re.search(r"<pre id=\"?result\"?>done (.*?)</pre>", done.stdout)[1])
    expected = Counter(page.read_text(encoding="utf-8"))
    assert found["tables"] == expected.tags["table"]
    assert found["images"] == expected.tags["img"] and not found["broken"]
    assert found["buttons"] > 4 * found["tables"]  # the script ran
    assert found["up"] == sorted(found["up"]) != found["down"]
    for plane in found["names"]:  # no two names over one another
        for i, (x, y, width) in enumerate(plane):
            assert not [n for n in plane[:i] if abs(n[1] - y) < 9 and -n[2] < n[0] - x < width]
    assert found["down"] == sorted(found["down"], reverse=True)
    assert (found["overflow"], found["hacked"]) == (0, "undefined")
    assert 360 < found["width"] <= 390  # a phone's
    assert "CONSOLE" not in done.stderr  # errors, warnings, and what its policy refused
