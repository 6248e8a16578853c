"""Our trainers in a fork of CoOp: names and keys in both orders, the copy, and its undoing."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from dassl.config import get_cfg_default
from dassl.utils import Registry
from PIL import Image
from yacs.config import CfgNode

import advprompt
from advprompt.cli import configs, dropin, robustness
from advprompt.cli.main import dispatch
from advprompt.config import host, shipped
from advprompt.config import keys as config
from advprompt.engine import run_folder
from advprompt.utils.entry import run_tool

TOY = Path(__file__).parents[1] / "hosts" / "dassl_fork" / "coop"
ENV = os.environ | {"OMP_NUM_THREADS": "1", "GIT_CONFIG_GLOBAL": os.devnull}
IDENTITY = ("-c", "user.name=x", "-c", "user.email=x@example.org")


# --- names ----------------------------------------------------------------------------------------


def named(name: str) -> type:
    return type(name, (), {})


@pytest.mark.parametrize("alias", [True, False])
def test_the_hosts_class_wins_in_both_orders(alias):
    registry, ours, theirs = Registry("THING"), named("CoOp"), named("CoOp")
    host.register_unless_taken(registry, ours, alias=alias)
    assert registry.get("CoOp") is ours
    registry.register()(theirs)  # as a decorator
    assert registry.get("CoOp") is theirs
    other = Registry("THING")
    other.register(theirs)
    host.register_unless_taken(other, ours, alias=alias)
    assert other.get("CoOp") is theirs
    for each in (registry, other):
        names = set(each.registered_names())
        assert names == ({"CoOp", "advprompt.CoOp"} if alias else {"CoOp"})
        if alias:
            assert each.get("advprompt.CoOp") is ours


def test_two_classes_of_the_host_still_collide():
    registry = Registry("THING")
    host.register_unless_taken(registry, named("CoOp"))
    registry.register(named("CoOp"))
    with pytest.raises(KeyError):
        registry.register(named("CoOp"))
    registry.register(named("CoOp"), force=True)


def test_two_of_ours_collide():
    """Neither replaces the other silently: tests/methods/test_methods.py has one's own method."""
    registry, ours = Registry("THING"), named("CoOp")
    host.register_unless_taken(registry, ours)
    mine = type("CoOp", (), {"__module__": "advprompt.custom.mine"})
    with pytest.raises(KeyError):
        registry.register(mine)
    assert registry.get("CoOp") is ours


def test_our_trainers_are_found_by_either_name(monkeypatch):
    registry = Registry("TRAINER")
    monkeypatch.setattr(config, "TRAINER_REGISTRY", registry)
    ours = config.METHODS["CoOp"]
    host.register_unless_taken(registry, ours, alias=True)
    assert config.method_called("CoOp") is config.method_called("advprompt.CoOp") is ours
    assert config.registered_name("advprompt.CoOp") == config.registered_name("CoOp") == "CoOp"
    registry.register(named("CoOp"))
    assert config.registered_name("CoOp") == "advprompt.CoOp"
    assert config.registered_name("CoCoOp") == "CoCoOp"


# --- keys -----------------------------------------------------------------------------------------


def fork_extend(cfg) -> None:
    """What forks do: whole groups are replaced."""
    cfg.TRAINER.COOP = CfgNode({"N_CTX": 7, "PREC": "fp16", "CTX_INIT": False})
    cfg.ATTACK = CfgNode({"PGD": {"EPS": 1}})
    cfg.DATASET.SUBSAMPLE_CLASSES = "base"


@pytest.fixture(params=["fork first", "ours first"])
def cfg(request):
    node = get_cfg_default()
    first, second = fork_extend, advprompt.extend_cfg
    if request.param == "ours first":
        first, second = second, first
    first(node)
    second(node)
    return node


def test_keys_of_the_fork_stay_and_ours_are_there(cfg):
    cfg.merge_from_list(["ATTACK.TEST.EPS", "4", "ATTACK.PGD.EPS", "2", "SEED", "3"])
    assert cfg.TRAINER.COOP.N_CTX == 7 and cfg.TRAINER.COOP.CTX_INIT is False
    assert cfg.DATASET.SUBSAMPLE_CLASSES == "base"
    assert cfg.ATTACK.PGD.EPS == 2 and cfg.SEED == 3
    assert cfg.ATTACK.TEST.EPS == "4" and cfg.ATTACK.TRAIN.STEPS == 10
    assert cfg.TRAINER.COOP.CLASS_TOKEN_POSITION == "end"  # ours, beside theirs


def test_explicit_settings_override_a_named_threat_model(cfg):
    cfg.merge_from_list(["ATTACK.TRAIN.STEPS", "10", "ATTACK.THREAT", "linf4", "SEED", "1"])
    shipped_node = yaml.safe_load(shipped.config_file("attacks", "linf4").read_text())["ATTACK"]
    assert shipped_node["TRAIN"]["STEPS"] != 10 == cfg.ATTACK.TRAIN.STEPS
    assert shipped_node["TRAIN"]["EPS"] == cfg.ATTACK.TRAIN.EPS
    assert "THREAT" not in cfg.ATTACK  # it stands for settings and is none


def test_a_file_may_name_a_threat_model_and_sizes_in_either_form(cfg, tmp_path):
    (tmp_path / "mine.yaml").write_text("ATTACK: {THREAT: linf4, TEST: {EPS: 3}}\nSEED: 5\n")
    cfg.merge_from_file(str(tmp_path / "mine.yaml"))
    assert (cfg.ATTACK.TEST.EPS, cfg.ATTACK.TRAIN.EPS, cfg.SEED) == ("3", "4/255", 5)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["ATTACK.THREAT", "linf99"], "no threat model is called 'linf99'. Did you mean"),
        (["ATTACK.THREAT", "no.yaml"], "config file 'no.yaml' does not exist"),
        (["ATTACK.TEST.STEP", "1"], "'ATTACK.TEST.STEP' on the command line is unknown"),
        (["ATTACK.TEST.STEPS", "many"], "ATTACK.TEST.STEPS is 'many'"),
    ],
)
def test_mistakes_are_named(cfg, words, sentence):
    with pytest.raises(advprompt.UserError, match=sentence.replace(".", r"\.")):
        cfg.merge_from_list(words)


def test_keys_that_nobody_has_are_refused_as_ever(cfg):
    with pytest.raises((KeyError, AssertionError)):
        cfg.merge_from_list(["TRAINER.COOP.NOTHING", "1"])


def test_copies_are_watched_each_for_itself(cfg):
    for copy in (cfg.clone(), pickle.loads(pickle.dumps(cfg))):
        copy.merge_from_list(["ATTACK.TRAIN.STEPS", "3"])
        assert copy.ATTACK.TRAIN.STEPS == 3
        assert "TRAIN" not in cfg.ATTACK or cfg.ATTACK.TRAIN.STEPS == 10


@pytest.mark.parametrize("kind", configs.KINDS)
def test_a_fork_can_read_every_shipped_file(kind):
    for name in configs.names(kind):
        node = get_cfg_default()
        fork_extend(node)
        advprompt.extend_cfg(node)
        node.merge_from_file(str(shipped.config_file(kind, name)))


def test_a_data_sets_augmentation_reaches_the_forks_loader():
    node = get_cfg_default()
    advprompt.extend_cfg(node)
    node.merge_from_file(str(shipped.config_file("datasets", "shapes")))
    node.merge_from_file(str(shipped.config_file("trainers", "AdvPT/tiny")))
    assert list(node.INPUT.TRANSFORMS) == ["random_translation"]


def test_a_frozen_configuration_takes_files_as_ever(cfg, tmp_path):
    (tmp_path / "mine.yaml").write_text("DATASET: {TRANSFORMS: [random_flip]}\nSEED: 5\n")
    cfg.merge_from_list(["SEED", "4"])  # adds what is missing
    cfg.freeze()
    cfg.merge_from_file(str(tmp_path / "mine.yaml"))
    assert cfg.SEED == 5 and cfg.INPUT.TRANSFORMS == ["random_flip"] and cfg.is_frozen()


def test_tests_of_finished_runs_know_the_forks_keys(monkeypatch, tmp_path):
    monkeypatch.setattr(host, "join", lambda: type("train", (), {"extend_cfg": fork_extend}))
    (tmp_path / run_folder.CONFIG_FILE).write_text('{"TRAINER.NAME": "AdvPT", "ATTACK.PGD.EPS": 9}')
    file = str(shipped.config_file("attacks", "linf1"))
    cfg, *_ = robustness.settings(str(tmp_path), file, "data", [])
    assert (cfg.ATTACK.PGD.EPS, cfg.TRAINER.COOP.N_CTX, cfg.ATTACK.TEST.EPS) == (9, 7, "1/255")


def test_a_missing_second_line_is_named():
    with pytest.raises(advprompt.UserError, match=r"'advprompt\.extend_cfg\(cfg\)' into train\.py"):
        host.complete(get_cfg_default(), advprompt.extend_cfg)


def test_a_trainer_completes_a_frozen_configuration():
    node = get_cfg_default()
    advprompt.extend_cfg(node)
    fork_extend(node)
    node.freeze()
    host.complete(node, advprompt.extend_cfg)
    assert node.ATTACK.TRAIN.STEPS == 10 and node.is_frozen() and node.ATTACK.TRAIN.is_frozen()


def test_a_trainer_that_a_fork_starts_takes_its_folder_itself(build, monkeypatch, capsys):
    trainer = build("CoOp")
    done = run_folder.Task("done", "x", "x")
    monkeypatch.setattr(run_folder, "look", lambda *_, **__: done)
    trainer.train()
    assert "skipped: " in capsys.readouterr().out

    def refuse(*_, **__):
        raise advprompt.UserError("holds a run with SEED = 1")

    trainer = build("CoOp")
    monkeypatch.setattr(run_folder, "look", refuse)
    with pytest.raises(advprompt.UserError, match="holds a run"):
        trainer.train()
    monkeypatch.undo()
    trainer = build("CoOp")
    assert trainer.take_folder() and (Path(trainer.output_dir) / run_folder.CONFIG_FILE).is_file()


@pytest.mark.parametrize("where", ["file", "overrides"])
def test_a_forks_own_default_backbone_is_not_taken_for_ours(tmp_path, monkeypatch, where):
    node = get_cfg_default()
    advprompt.extend_cfg(node)
    (tmp_path / "mine.yaml").write_text("MODEL: {BACKBONE: {NAME: tiny}}\n")
    if where == "file":
        node.merge_from_file(str(tmp_path / "mine.yaml"))
    else:
        node.merge_from_list(["MODEL.BACKBONE.NAME", "tiny"])
    host.complete(node, advprompt.extend_cfg)
    node.MODEL.BACKBONE.NAME = "ViT-B/16"  # as reset_cfg of such a fork does
    with pytest.raises(advprompt.UserError, match=r"'ViT-B/16'.*'tiny'.*add --backbone tiny"):
        host.complete(node.clone(), advprompt.extend_cfg)
    monkeypatch.setattr(sys, "argv", ["train.py", "--backbone", "ViT-B/16"])
    host.complete(node, advprompt.extend_cfg)


def test_a_fork_that_does_not_train_by_default_is_told_so(build, monkeypatch):
    trainer = build("CoOp")
    with pytest.raises(advprompt.UserError, match="this fork trains only when told to"):
        trainer.load_model("")
    monkeypatch.setattr(sys, "argv", ["train.py", "--eval-only"])
    with pytest.raises(advprompt.UserError, match="--model-dir, the run folder of a trained CoOp"):
        trainer.load_model("")


# --- the two lines --------------------------------------------------------------------------------

MARK = dropin.MARK
SHAPES = {
    "coop": (TOY / "train.py").read_bytes(),
    "crlf": (TOY / "train.py").read_bytes().replace(b"\n", b"\r\n"),
    "tabs": (TOY / "train.py").read_bytes().replace(b"    ", b"\t"),
    "no extend_cfg": b"import dassl\ncfg = get_cfg_default()  # __main__\n",
    "no newline": b"from __future__ import annotations\nimport dassl.engine\n"
    b"if __name__ == '__main__':\n    extend_cfg(cfg)",
    "latin": b"# -*- coding: latin-1 -*-\n# \xe9 __main__\nimport dassl\nextend_cfg(node)\n",
    "guarded": b"try:\n    import dassl\nexcept ImportError:\n    pass\nif '__main__':\n"
    b"    extend_cfg(c)\n",
}


@pytest.fixture
def fork(tmp_path):
    """A toy fork under git, with everything committed."""
    path = tmp_path / "fork"
    shutil.copytree(TOY, path, ignore=shutil.ignore_patterns("__pycache__"))
    git(path, "init", "-q")
    git(path, "add", "-A")
    git(path, *IDENTITY, "commit", "-q", "-m", "x")
    return path


def git(path, *words) -> str:
    done = subprocess.run(["git", "-C", path, *words], env=ENV, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("shape", SHAPES)
def test_two_lines_go_in_and_out(fork, shape):
    content = SHAPES[shape]
    (fork / "train.py").write_bytes(content)
    after = dropin.edited(fork / "train.py")
    lines = after.splitlines()
    first, second = (i for i, line in enumerate(lines) if MARK in line)
    assert lines[first].startswith(b"from trainers import advprompt ")
    assert lines[first + 1].startswith((b"import dassl", b"from dassl", b"try:"))
    assert lines[second - 1].rstrip().endswith((b"(cfg)", b"(node)", b"(c)", b"# __main__"))
    assert after.replace(b"\r\n", b"").count(b"\r") == 0
    assert (b"\r\n" in content) == (after.count(b"\r\n") == after.count(b"\n"))
    assert dropin.restored(after) == content
    assert dropin.restored(b"# mine\n" + after) == b"# mine\n" + content


@pytest.mark.parametrize("name", ["train.py", "trainers", "configs"])
def test_what_is_behind_a_link_is_left_alone(fork, call, tmp_path, name):
    outside = tmp_path / "outside"
    if (fork / name).exists():
        (fork / name).rename(outside)
    else:
        outside.mkdir()
    (fork / name).symlink_to(outside)
    before = snapshot(fork), snapshot(tmp_path)
    code, _, err = call("--apply")
    assert code == 2 and f"'{fork / name}' is a link to '{outside}'" in err
    assert (snapshot(fork), snapshot(tmp_path)) == before


def test_undo_stops_at_links_that_came_later(fork, call, tmp_path):
    assert call("--apply")[0] == 0
    (fork / "trainers/advprompt/custom").rename(tmp_path / "custom")
    (fork / "trainers/advprompt/custom").symlink_to(tmp_path / "custom")
    assert call("--undo")[0] == 0
    assert (tmp_path / "custom/__init__.py").is_file()


def test_looking_runs_nothing_of_the_fork(fork, tmp_path, capsys):
    """Neither its code nor its git, whose settings may name programs."""
    run = f"open({str(tmp_path / 'run')!r}, 'a').write(__name__)\n"
    for name in ("threading", "types", "sitecustomize", "usercustomize"):
        (fork / f"{name}.py").write_text(run)
    (fork / "train.py").write_bytes(run.encode() + SHAPES["coop"])
    git(fork, "config", "core.fsmonitor", f"touch {tmp_path / 'run'}; false")
    assert run_tool(dropin.main, [str(fork)]) == 0
    assert "+++ b/train.py" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


def test_a_fork_whose_import_would_run_it_is_not_imported(fork, tmp_path, monkeypatch):
    (fork / "train.py").write_text(f"import dassl\nopen({str(tmp_path / 'run')!r}, 'w')\n")
    monkeypatch.setattr(host, "folder", lambda: fork)
    with pytest.raises(
        advprompt.UserError, match="importing it for the fork's data sets would run"
    ):
        host.join()
    assert not (tmp_path / "run").exists()


def test_an_installed_package_does_not_mix_with_a_forks_copy(fork, call, monkeypatch):
    assert call("--apply")[0] == 0
    monkeypatch.setattr(host, "folder", lambda: fork)
    with pytest.raises(advprompt.UserError, match="has its own copy of advprompt"):
        host.join()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"import torch  # __main__\n", "does not import dassl at its top level"),
        (b"import dassl\nprint('__main__')\n", "calls neither extend_cfg"),
        (b"import dassl\ndef f(:\n", "cannot be parsed"),
        (b"import dassl\nextend_cfg(c)\n", "importing it would run it"),
        (b"import advprompt, dassl\nextend_cfg(c)  # __main__\n", "mentions advprompt already"),
        (b"import dassl\nx = [\n1]; extend_cfg(c) if 0 else '__main__'\n", "calls neither"),
        (None, "it has no train.py"),
    ],
)
def test_what_is_not_a_fork_is_refused(fork, content, sentence, capsys):
    if content is None:
        (fork / "train.py").unlink()
    else:
        (fork / "train.py").write_bytes(content)
    assert run_tool(dropin.main, [str(fork)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and sentence in error and error.count("\n") == 1


def test_a_fork_one_folder_below_is_offered(fork, capsys):
    assert run_tool(dropin.main, [str(fork.parent)]) == 2
    assert f"did you mean '{fork}'?" in capsys.readouterr().err
    assert run_tool(dropin.main, [str(fork / "nowhere")]) == 2
    assert run_tool(dropin.main, [str(Path(advprompt.__file__).parents[1])]) == 2
    assert "is advprompt itself" in capsys.readouterr().err


# --- apply and undo -------------------------------------------------------------------------------


@pytest.fixture
def call(fork, capsys, monkeypatch):
    """Run the command on the toy fork, which is not imported: ``call("--apply")``."""
    facts = {"trainers": ["AdvPT"], "dassl": "somewhere"}
    monkeypatch.setattr(dropin, "verify", lambda *_: facts)

    def run(*words):
        code = run_tool(dropin.main, [str(fork), *words])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def snapshot(fork) -> dict:
    return {
        p.relative_to(fork).as_posix(): p.read_bytes() if p.is_file() else None
        for p in fork.rglob("*")
        if ".git" not in p.parts
    }


def test_looking_changes_nothing(fork, call):
    before = snapshot(fork)
    code, out, _ = call()
    assert code == 0 and snapshot(fork) == before
    assert out.count(f"+    advprompt.extend_cfg(cfg)  {MARK.decode()}") == 1
    assert "+ trainers/advprompt/" in out and "--apply makes these changes" in out


@pytest.mark.parametrize("shape", ["coop", "crlf", "no newline"])
def test_undo_leaves_the_fork_as_it_was(fork, call, shape):
    (fork / "train.py").write_bytes(SHAPES[shape])
    (fork / "train.py").chmod(0o755)
    git(fork, *IDENTITY, "commit", "-qam", "x", "--allow-empty")
    before = snapshot(fork)
    assert call("--apply")[0] == 0
    assert (fork / "train.py").stat().st_mode & 0o777 == 0o755
    assert (fork / "trainers/advprompt/compat/dassl/__init__.py").is_file()
    assert (fork / "trainers/advprompt/datasets/shapes.py").is_file()
    assert (fork / "configs/advprompt/attacks/linf1.yaml").is_file()
    assert os.access(fork / "scripts/advprompt/advpt/main.sh", os.X_OK)
    assert not (fork / "scripts/advprompt/setup.sh").exists()
    for folder in ("trainers/advprompt/custom", "trainers/advprompt"):
        compiled = fork / folder / "__pycache__" / "__init__.cpython-311.pyc"
        compiled.parent.mkdir()  # as Python does when the fork runs
        compiled.write_bytes(b"")
    code, out, _ = call("--undo")
    assert (code, out) == (0, "undone\n")
    assert snapshot(fork) == before and git(fork, "status", "--porcelain") == ""


def test_refusals(fork, call):
    assert call("--undo")[0] == 2 and "nothing to undo" in call("--undo")[2]
    assert call("--apply")[0] == 0
    for words in (["--apply"], []):
        code, _, err = call(*words)
        assert code == 2 and "changed by dropin already" in err and "--undo" in err
    assert call("--undo")[0] == 0
    (fork / "configs/advprompt").mkdir(parents=True)
    (fork / "configs/advprompt/mine.yaml").write_text("SEED: 1")
    code, _, err = call("--apply")
    assert code == 2 and "exists and is not from dropin" in err


def test_what_the_user_changed_or_added_is_kept(fork, call):
    assert call("--apply")[0] == 0
    changed, added = (fork / "trainers/advprompt" / name for name in ("capt.py", "custom/mine.py"))
    changed.write_text("# mine")
    added.write_text("# mine")
    with open(fork / "train.py", "a") as file:
        file.write("# mine\n")
    code, out, _ = call("--undo")
    assert code == 0 and out.count("kept, because you changed or added it") == 2
    assert (fork / "train.py").read_bytes() == SHAPES["coop"] + b"# mine\n"
    left = {n for n, text in snapshot(fork / "trainers/advprompt").items() if text is not None}
    assert left == {"capt.py", "custom/mine.py"}


@pytest.mark.parametrize("stop", [1, 40, "train.py"])
def test_an_interrupted_apply_can_be_undone(fork, call, monkeypatch, stop):
    before, done, copy = snapshot(fork), [], shutil.copyfile

    def interrupted(source, target):
        if len(done) == stop:
            raise KeyboardInterrupt
        done.append(copy(source, target))

    def interrupted_rewrite(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(dropin.shutil, "copyfile", interrupted)
    if stop == "train.py":
        monkeypatch.setattr(dropin, "rewrite", interrupted_rewrite)
    assert call("--apply")[0] == 130
    monkeypatch.undo()
    code, _, err = call("--apply")
    assert code == 2 and "--undo first" in err
    # what a kill leaves of a write
    (fork / "trainers/advprompt/.capt.py.4711.0123abcd.tmp").write_bytes(b"half")
    assert call("--undo")[0] == 0 and snapshot(fork) == before


def test_an_interrupted_undo_is_finished_by_the_next(fork, call, monkeypatch):
    before, unlink, left = snapshot(fork), Path.unlink, [50]
    assert call("--apply")[0] == 0

    def killed(path, **words):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        unlink(path, **words)

    monkeypatch.setattr(Path, "unlink", killed)
    assert call("--undo")[0] == 130
    monkeypatch.setattr(Path, "unlink", unlink)
    assert call("--undo")[0] == 0 and snapshot(fork) == before


def test_a_failure_leaves_everything_as_it_was(fork, call, capsys, monkeypatch):
    before = snapshot(fork)

    def full(path, _):
        path.parent.mkdir()
        raise advprompt.UserError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(dropin, "write_json", full)
        code, _, err = call("--apply")
    assert code == 2 and err == "error: the disk is full; the fork is as it was\n"
    assert snapshot(fork) == before
    monkeypatch.undo()  # the import is real now
    (fork / "trainers/coop.py").write_text("import a_package_that_is_missing\n")
    before = snapshot(fork)
    assert run_tool(dropin.main, [str(fork), "--apply"]) == 2
    error = capsys.readouterr().err
    assert "a_package_that_is_missing" in error and error.endswith("the fork is as it was\n")
    assert snapshot(fork) == before


@pytest.mark.parametrize("content", ["{}", '{"files": {"../x": "1"}}', "[]", '{"files": 3}'])
def test_a_damaged_list_is_refused(fork, call, content):
    (fork / "trainers/advprompt").mkdir()
    (fork / dropin.MANIFEST).write_text(content)
    code, _, err = call("--undo")
    assert code == 2 and ("is damaged" in err or "expected an object" in err)


def test_shipped_configs(capsys, tmp_path):
    assert run_tool(dispatch, ["configs", "AdvPT/vit_b16"]) == 0
    assert Path(capsys.readouterr().out.strip()).name == "vit_b16.yaml"
    assert run_tool(dispatch, ["configs", "linf99"]) == 2
    assert run_tool(dispatch, ["configs", "--copy", str(tmp_path / "new")]) == 0
    assert (tmp_path / "new/attacks/linf1.yaml").is_file()
    assert run_tool(dispatch, ["configs", "--copy", str(tmp_path / "new")]) == 2


# --- a run ----------------------------------------------------------------------------------------

SHORT = (
    "--seed 1 OPTIM.MAX_EPOCH 1 DATALOADER.NUM_WORKERS 0 DATALOADER.TRAIN_X.BATCH_SIZE 4 "
    "DATASET.TEMPLATE a.photo.of.a.{} ATTACK.THREAT advpt_tiny ATTACK.TRAIN.STEPS 1 "
    "ATTACK.TEST.LIST [{'STEPS':1}] TEST.PROBES 0 TEST.PICTURE 0"
).split()


@pytest.mark.slow
def test_a_fork_trains_and_tests_ours_with_its_own_command_line(fork, tmp_path):
    for name in ("beagle", "boxer"):
        for i in range(2):
            (tmp_path / "data" / name).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (64, 64), (90 * i, 120, 150)).save(tmp_path / f"data/{name}/{i}.png")
    (fork / "pets.yaml").write_text("DATASET: {NAME: OxfordPets}\n")
    git(fork, "add", "-A")
    git(fork, *IDENTITY, "commit", "-q", "-m", "x")
    home = Path(advprompt.__file__).parents[1]
    # where Dassl is absent, a fork imports it from the copied compat/ behind the first line
    env = ENV | {"PYTHONPATH": "", "HOME": str(tmp_path)}

    def run(*words, cwd=fork, code=0):
        done = subprocess.run(
            [sys.executable, *map(str, words)], cwd=cwd, env=env, capture_output=True, text=True
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout

    out = run("-m", "advprompt", "dropin", fork, "--apply", cwd=home)
    assert "advprompt.CoOp" in out  # beside the fork's own
    data = ("--root", tmp_path / "data", "--dataset-config-file", "pets.yaml")
    mine = ("--trainer", "AdvPT", "--config-file", "configs/advprompt/trainers/AdvPT/tiny.yaml")
    trained, tested = tmp_path / "trained", tmp_path / "tested"
    out = run("train.py", *data, *mine, "--output-dir", trained, *SHORT)
    assert "this is the fork's OxfordPets" in out
    record = json.loads((trained / "record.json").read_text())
    assert (record["trainer"], record["dataset"], record["seed"]) == ("AdvPT", "OxfordPets", 1)
    threat = yaml.safe_load(shipped.config_file("attacks", "advpt_tiny").read_text())["ATTACK"]
    assert record["train_threat"]["eps"] == threat["TRAIN"]["EPS"]  # of ATTACK.THREAT
    assert record["train_threat"]["steps"] == 1  # of the key beside it
    again = ("--eval-only", "--model-dir", trained, "--output-dir", tested)
    run("train.py", *data, *mine, *again, *SHORT)
    assert json.loads((tested / "record.json").read_text())["clean"] == record["clean"]
    plan = run(
        "-m",
        "trainers.advprompt",
        "train",
        "--dry-run",
        *data,
        "--trainer",
        "CoOp",
        "--config-file",
        "configs/advprompt/trainers/CoOp/tiny.yaml",
        "--output-dir",
        tmp_path / "coop",
    )
    assert "1 to run" in plan  # ours: the fork's own has another command line
    run("-m", "trainers.advprompt", "dropin", fork, "--undo")
    assert git(fork, "status", "--porcelain") == ""
