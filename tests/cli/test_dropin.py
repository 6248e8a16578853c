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
from advprompt.cli.fork import MARK, Edit, Fork
from advprompt.config import host, shipped
from advprompt.config import keys as config
from advprompt.engine import run_folder
from advprompt.engine import trainer as robust_trainer
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
    host.lend(registry, ours, alias=alias)
    assert registry.get("CoOp") is ours
    registry.register()(theirs)  # as a decorator
    assert registry.get("CoOp") is theirs
    other = Registry("THING")
    other.register(theirs)
    host.lend(other, ours, alias=alias)
    assert other.get("CoOp") is theirs
    for each in (registry, other):
        names = set(each.registered_names())
        assert names == ({"CoOp", "advprompt.CoOp"} if alias else {"CoOp"})
        if alias:
            assert each.get("advprompt.CoOp") is ours


def test_two_classes_of_the_host_still_collide():
    registry = Registry("THING")
    host.lend(registry, named("CoOp"))
    registry.register(named("CoOp"))
    with pytest.raises(KeyError):
        registry.register(named("CoOp"))
    registry.register(named("CoOp"), force=True)


def test_two_of_ours_collide(monkeypatch):
    """Neither replaces the other silently, also where a method of one's own is added."""
    registry, ours = Registry("THING"), named("CoOp")
    host.lend(registry, ours)
    mine = type("CoOp", (), {"__module__": "advprompt.custom.mine"})
    with pytest.raises(KeyError):
        registry.register(mine)
    assert registry.get("CoOp") is ours
    monkeypatch.setattr(robust_trainer, "METHODS", {"CoOp": config.METHODS["CoOp"]})
    with pytest.raises(
        advprompt.UserError, match=r"of advprompt\.custom\.mine has the name of one in"
    ):
        robust_trainer.register(mine)


def test_our_trainers_are_found_by_either_name(monkeypatch):
    registry = Registry("TRAINER")
    monkeypatch.setattr(config, "TRAINER_REGISTRY", registry)
    ours = config.METHODS["CoOp"]
    host.lend(registry, ours, alias=True)
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
        (["ATTACK.TEST.STEPS", "many"], "'ATTACK.TEST.STEPS' on the command line is 'many'"),
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
    cfg, _ = robustness.settings(str(tmp_path), file, "data", [])
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


# --- the two lines --------------------------------------------------------------------------------

SHAPES = {
    "coop": (TOY / "train.py").read_bytes(),
    "crlf": (TOY / "train.py").read_bytes().replace(b"\n", b"\r\n"),
    "tabs": (TOY / "train.py").read_bytes().replace(b"    ", b"\t"),
    "no extend_cfg": b"import dassl\ncfg = get_cfg_default()\n",
    "no newline": b"from __future__ import annotations\nimport dassl.engine\n"
    b"if __name__ == '__main__':\n    extend_cfg(cfg)",
    "latin": b"# -*- coding: latin-1 -*-\n# \xe9\nimport dassl\nextend_cfg(node)  # \xe9\n",
    "guarded": b"try:\n    import dassl\nexcept ImportError:\n    pass\nif 1:\n    extend_cfg(c)\n",
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
    edit = Fork(fork).edit()
    added = [line for line in edit.after.splitlines() if MARK.encode() in line]
    assert len(added) == 2 and added[0].startswith(b"from trainers import advprompt ")
    (offset, _), (behind, _) = edit.inserted
    assert content[offset:].startswith((b"import dassl", b"from dassl", b"try:"))
    assert (
        edit.after[:behind].rstrip().endswith((b"(cfg)", b"(node)  # \xe9", b"(c)", b"default()"))
    )
    assert edit.after.replace(b"\r\n", b"").count(b"\r") == 0
    assert (b"\r\n" in content) == (edit.after.count(b"\r\n") == edit.after.count(b"\n"))
    again = Edit.restored(json.loads(json.dumps(edit.describe())))
    assert again.undone(edit.after) == (content, [])
    changed = b"# mine\n" + edit.after
    assert again.undone(changed) == (b"# mine\n" + content, [])
    _, left = again.undone(edit.after.replace(b"advprompt.extend_cfg(", b"advprompt.extend_cfg( "))
    assert len(left) == 1 and "extend_cfg(" in left[0]
    other = edit.after.replace(b"\r\n", b"\n") if b"\r" in content else changed
    assert again.undone(other)[1] == []  # an editor has changed the ends of lines


def test_lines_that_moved_are_left_rather_than_the_file_broken():
    content = SHAPES["coop"]
    first, second = (b"from trainers import advprompt", b"    advprompt.extend_cfg(cfg)")
    mark = f"  {MARK}\n".encode()
    at = content.index(b"from dassl.config"), content.index(b"    if args.dataset_config_file")
    edit = Edit.of(content, [(at[0], first + mark), (at[1], second + mark)])
    # indented by the user: neither line is whole any more
    moved = edit.after.replace(first + mark, b"try:\n    " + first + mark + b"except OSError: 0\n")
    undone, left = edit.undone(moved)
    assert undone == moved.replace(second + mark, b"") and left == [(first + mark).decode().strip()]
    # the only line of a block
    block = edit.after.replace(second, b"    if 1:\n    " + second)
    edit = Edit.of(content, [(at[1], b"    " + second + mark)])
    undone, left = edit.undone(block)
    assert undone == block and len(left) == 2


def test_a_byte_order_mark_stays_in_front(fork):
    content = b"\xef\xbb\xbfimport dassl\nextend_cfg(cfg)\n"
    (fork / "train.py").write_bytes(content)
    edit = Fork(fork).edit()
    assert edit.after.startswith(b"\xef\xbb\xbffrom trainers") and edit.after.count(b"\xef") == 1
    assert edit.undone(edit.after) == (content, [])


@pytest.mark.parametrize("name", ["train.py", "trainers", "configs"])
def test_what_lies_behind_a_link_is_left_alone(fork, call, tmp_path, name):
    outside = tmp_path / "outside"
    if (fork / name).exists():
        (fork / name).rename(outside)
    else:
        outside.mkdir()
    (fork / name).symlink_to(outside)
    before = snapshot(fork), snapshot(tmp_path)
    code, _, err = call("--apply", "--force")
    assert code == 2 and f"'{fork / name}' is a link that leads out of the fork" in err
    assert (snapshot(fork), snapshot(tmp_path)) == before


def test_undo_stops_at_links_that_came_later(fork, call, tmp_path):
    assert call("--apply")[0] == 0
    (fork / "trainers/advprompt/own").rename(tmp_path / "own")
    (fork / "trainers/advprompt/own").symlink_to(tmp_path / "own")
    code, out, _ = call("--undo")
    assert code == 0 and "own/__init__.py, behind a link" in out
    assert (tmp_path / "own/__init__.py").is_file()


def test_looking_runs_nothing_of_the_fork(fork, tmp_path):
    run = f"open({str(tmp_path / 'run')!r}, 'a').write(__name__)\n"
    for name in ("threading", "warnings", "contextlib", "types", "sitecustomize", "usercustomize"):
        (fork / f"{name}.py").write_text(run)
    (fork / "dassl").mkdir()
    (fork / "dassl/__init__.py").write_text(run)
    (fork / "train.py").write_bytes(run.encode() + SHAPES["coop"])
    assert Fork(fork).dassl(sys.executable) == f"of unknown version, {fork / 'dassl'}"
    assert run_tool(dropin.main, [str(fork)]) == 0
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
    with pytest.raises(advprompt.UserError, match="has a copy of advprompt of its own"):
        host.join()


def test_interpreters_are_named_from_where_the_user_is(fork, call, tmp_path, monkeypatch):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/python").symlink_to(sys.executable)
    monkeypatch.chdir(tmp_path)
    assert call("--python", "bin/python")[0] == 0
    code, _, err = call("--python", "bin/none")
    assert code == 2 and f"'{tmp_path / 'bin/none'}' cannot be run" in err
    code, _, err = call("--python", shutil.which("false"))
    assert code == 2 and "is no Python that runs here (exit code 1)" in err


def test_git_that_cannot_answer_is_no_clean_tree(fork, call):
    (fork / ".git/HEAD").unlink()
    code, out, err = call("--apply")
    assert code == 2 and "git cannot say" in err and "git, unreadable" not in err
    assert "(git, unreadable)" in call()[1]
    assert call("--apply", "--force")[0] == 0


def test_file_names_of_any_bytes(fork, call):
    name = b"caf\xe9.pyc"
    with open(os.fsencode(fork) + b"/" + name, "wb"):
        pass
    assert "1 changes" in call()[1]
    code, _, err = call("--apply")
    assert code == 2 and "caf?.pyc" in err
    assert call("--apply", "--force")[0] == 0 and call("--undo")[0] == 0
    assert name in os.listdir(os.fsencode(fork))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"import torch\n", "does not import dassl at its top level"),
        (b"import dassl\nprint('__main__')\n", "calls neither extend_cfg"),
        (b"import dassl\ndef f(:\n", "cannot be parsed"),
        (b"import dassl\nextend_cfg(c)\n", "importing it would run it"),
        (b"import advprompt, dassl\nextend_cfg(c)  # __main__\n", "mentions advprompt already"),
        (b"import dassl\nx = [\n1]; extend_cfg(c) if 0 else '__main__'\n", "calls neither"),
        (None, "it has no train.py"),
    ],
)
def test_what_is_no_fork_is_refused(fork, content, sentence, capsys):
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
    """Run the tool on the toy fork, which is not imported: ``call("--apply")``."""
    facts = {"ours": ["AdvPT"], "dassl": "somewhere"}
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
    assert "build_model(state_dict, design_details)" in out and "+++ b/train.py" in out
    assert out.count(f"+    advprompt.extend_cfg(cfg)  {MARK}") == 1
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
    assert (fork / "configs/advprompt/attacks/linf1.yaml").is_file()
    assert os.access(fork / "scripts/advprompt/advpt/main.sh", os.X_OK)
    for folder in ("trainers", "trainers/advprompt/own", "trainers/advprompt", "datasets"):
        compiled = fork / folder / "__pycache__" / "__init__.cpython-311.pyc"
        compiled.parent.mkdir()  # as Python does when the fork runs
        compiled.write_bytes(b"")
    code, out, _ = call("--undo")
    assert (code, out) == (0, "undone\n")
    assert snapshot(fork) == before and git(fork, "status", "--porcelain") == ""


def test_the_copy_is_what_pip_installs(fork, call):
    assert call("--apply")[0] == 0
    home = Path(advprompt.__file__).parents[1]
    copied = snapshot(fork / "trainers/advprompt")
    for source, target in (("trainers", ""), ("tools", "tools/"), ("compat", "compat/")):
        for path in (home / source).rglob("*.py"):
            place = target + path.relative_to(home / source).as_posix()
            assert copied[place] == path.read_bytes()
    assert not any(".dropin-part" in name or "__pycache__" in name for name in copied)
    assert not (fork / "scripts/advprompt/setup.sh").exists()


def test_refusals(fork, call):
    assert call("--undo")[0] == 2 and "nothing to undo" in call("--undo")[2]
    (fork / "notes.txt").write_text("x")
    code, _, err = call("--apply")
    assert code == 2 and "uncommitted changes" in err and "notes.txt" in err and "--force" in err
    assert call("--apply", "--force")[0] == 0
    code, _, err = call("--apply", "--force")
    assert code == 2 and "changed by dropin already" in err and "--undo" in err
    assert call()[0] == 2
    assert call("--undo")[0] == 0
    assert (fork / "notes.txt").exists()
    (fork / "configs/advprompt/empty").mkdir(parents=True)  # nothing that could be in the way
    assert call("--apply", "--force")[0] == 0 and call("--undo")[0] == 0
    (fork / "configs/advprompt/mine.yaml").parent.mkdir(exist_ok=True, parents=True)
    (fork / "configs/advprompt/mine.yaml").write_text("SEED: 1")
    code, _, err = call("--apply", "--force")
    assert code == 2 and "is there already and not from dropin" in err


def test_what_the_user_changed_or_added_is_kept(fork, call):
    assert call("--apply")[0] == 0
    changed, added = (fork / "trainers/advprompt" / name for name in ("capt.py", "own/mine.py"))
    changed.write_text("# mine")
    added.write_text("# mine")
    with open(fork / "train.py", "a") as file:
        file.write("# mine\n")
    code, out, _ = call("--undo")
    assert code == 0 and "capt.py, which was changed since" in out
    assert "own/mine.py, which dropin did not put there" in out
    assert (fork / "train.py").read_bytes() == SHAPES["coop"] + b"# mine\n"
    left = {
        n for n, content in snapshot(fork / "trainers/advprompt").items() if content is not None
    }
    assert left == {"capt.py", "own/mine.py"}


@pytest.mark.parametrize("stop", [1, 40, "train.py"])
def test_an_interrupted_apply_can_be_undone(fork, call, monkeypatch, stop):
    before, copied, copy = snapshot(fork), [], dropin.copy

    def interrupted(source, target):
        if len(copied) == stop:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.with_name(target.name + dropin.PART).write_bytes(b"half")
            raise KeyboardInterrupt
        copied.append(copy(source, target))

    monkeypatch.setattr(dropin, "copy", interrupted)
    if stop == "train.py":
        monkeypatch.setattr(dropin, "write", interrupted_write)
    assert call("--apply")[0] == 130
    monkeypatch.undo()
    code, _, err = call("--apply", "--force")
    assert code == 2 and "--undo first" in err
    killed = "4711.0123abcd.tmp"  # what no 'finally' could remove
    for part in (f".train.py.{killed}", f"trainers/advprompt/.dropin.json.{killed}"):
        (fork / part).write_bytes(b"half")
    assert call("--undo")[0] == 0 and snapshot(fork) == before


def test_an_apply_killed_before_its_list_is_in_the_way_of_none(fork, call):
    (fork / "trainers/advprompt").mkdir()
    (fork / "trainers/advprompt/.dropin.json.4711.0123abcd.tmp").write_bytes(b"half")
    assert call("--apply", "--force")[0] == 0
    assert call("--undo")[0] == 0 and git(fork, "status", "--porcelain") == ""


def test_an_undo_killed_anywhere_is_finished_by_the_next(fork, call, monkeypatch):
    before, unlink = snapshot(fork), Path.unlink
    for stop in (50, "manifest"):
        assert call("--apply")[0] == 0
        left = [stop]

        def killed(path, left=left, **words):
            at_list = left[0] == "manifest" and path.name == "dropin.json"
            if at_list or left[0] == 0:
                raise KeyboardInterrupt
            if path.exists() and left[0] != "manifest":
                left[0] -= 1
            unlink(path, **words)

        monkeypatch.setattr(Path, "unlink", killed)
        assert call("--undo")[0] == 130
        monkeypatch.setattr(Path, "unlink", unlink)
        assert call("--undo")[0] == 0 and snapshot(fork) == before


def test_a_fork_that_cannot_be_written_to_is_left_alone(fork, call, monkeypatch):
    before = snapshot(fork)

    def full(path, _):
        path.parent.mkdir()
        raise advprompt.UserError("the disk is full")

    monkeypatch.setattr(dropin.files, "write_json", full)
    code, _, err = call("--apply")
    assert code == 2 and err == "error: the disk is full; everything is as it was\n"
    assert snapshot(fork) == before


def interrupted_write(*_):
    raise KeyboardInterrupt


def test_a_failure_leaves_everything_as_it_was(fork, capsys):
    (fork / "trainers/coop.py").write_text("import a_package_that_is_missing\n")
    git(fork, *IDENTITY, "commit", "-qam", "x")
    before = snapshot(fork)
    assert run_tool(dropin.main, [str(fork), "--apply"]) == 2
    error = capsys.readouterr().err
    assert "a_package_that_is_missing" in error and error.endswith("everything is as it was\n")
    assert snapshot(fork) == before


OUTSIDE = {"inserted": [], "before": "", "after": ""}
OUTSIDE = {"files": {}, "folders": ["../x"], "train.py": OUTSIDE, "bytecode": []}


@pytest.mark.parametrize("content", ["{}", '{"files": {"../x": "1"}}', "[]", json.dumps(OUTSIDE)])
def test_a_damaged_list_is_refused(fork, call, content):
    (fork / "trainers/advprompt").mkdir()
    (fork / dropin.MANIFEST).write_text(content)
    code, _, err = call("--undo")
    assert code == 2 and "is damaged" in err


def test_shipped_configs(capsys, tmp_path):
    assert run_tool(configs.main, ["AdvPT/vit_b16"]) == 0
    assert Path(capsys.readouterr().out.strip()).name == "vit_b16.yaml"
    assert run_tool(configs.main, ["linf99"]) == 2
    assert run_tool(configs.main, ["--copy", str(tmp_path / "new")]) == 0
    assert (tmp_path / "new/attacks/linf1.yaml").is_file()
    assert run_tool(configs.main, ["--copy", str(tmp_path / "new")]) == 2


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
        "trainers.advprompt.tools.train",
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
    run("-m", "trainers.advprompt.tools.dropin", fork, "--undo")
    assert git(fork, "status", "--porcelain") == ""
