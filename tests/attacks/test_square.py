"""Square attack: its squares and schedule, its conduct, what it breaks, the original."""

from __future__ import annotations

import gc

import pytest
import torch
import victim
from hypothesis import given, settings
from hypothesis import strategies as st
from victim import EPS, NORMS, distance, is_right, problem, threat

from advprompt.attacks import squares
from advprompt.attacks.square import QUERIES, Square, covered_share

both_norms = pytest.mark.parametrize("norm", NORMS)


def few(queries: int = 30, **options):
    """Return Square with few queries, to be built like any attack."""
    return lambda logits, labels, spec: Square(logits, labels, spec, queries=queries, **options)


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


# --- squares and schedule ------------------------------------------------------------------------


def test_squares_shrink_as_in_the_paper():
    steps = [0, 10, 11, 50, 51, 200, 201, 500, 501, 1000, 1001, 2000, 2001, 4000, 4001, 8001, 9999]
    halvings = [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 9, 9]
    assert [covered_share(s) for s in steps] == [0.8 / 2**k for k in halvings]
    clean = torch.zeros(1, 3, 224, 224)
    linf, l2 = (Square(None, None, threat(norm)) for norm in NORMS)
    assert [linf._side(q, clean) for q in (0, 11, 5000)] == [200, 142, 18]
    assert [l2._side(q, clean) for q in (0, 11, 5000)] == [201, 143, 19]
    assert linf._side(4999, torch.zeros(1, 3, 8, 8)) == 1  # never less than a pixel
    assert l2._side(4999, torch.zeros(1, 3, 8, 8)) == 3
    assert l2._side(0, torch.zeros(1, 3, 8, 4)) == 4  # never more than the image
    quick = Square(None, None, threat(), queries=100, rescale=True)
    assert quick._side(99, clean) == linf._side(9900, clean)
    assert QUERIES == linf.queries == 5000


@both_norms
@settings(max_examples=30, deadline=None)
@given(
    eps=st.sampled_from([0.0, 0.01, 0.3, 5.0]),
    height=st.integers(1, 14),
    width=st.integers(1, 14),
    seed=st.integers(0, 10**6),
)
def test_every_proposal_stays_in_the_ball_and_in_range(norm, eps, height, width, seed):
    linf = norm == "linf"
    own = generators(seed, seed + 1, seed + 2)
    clean = (1.4 * torch.rand(3, 3, height, width, generator=own[0]) - 0.2).clamp(0, 1)
    images = (squares.stripes if linf else squares.tiles)(clean, eps, own)
    for side in {1, min(3, height, width), min(height, width)}:
        assert images.min() >= 0 and images.max() <= 1
        assert (distance(images, clean, norm) <= eps + 1e-6).all()
        change = squares.recolour if linf else squares.move_mass
        images = change(clean, images, side, eps, own)


def test_linf_starts_with_stripes_and_changes_squares():
    clean, eps = torch.full((2, 3, 16, 16), 0.5), 0.1
    own = generators(1, 2)
    start = squares.stripes(clean, eps, own)
    torch.testing.assert_close((start - clean).abs(), torch.full_like(clean, eps))
    assert (start == start[:, :, :1]).all() and not (start == start[..., :1]).all()
    corners = set()
    for _ in range(300):
        changed = squares.recolour(clean, start, 5, eps, own) - start
        for moved in changed[changed.flatten(1).any(1)]:  # (3, 16, 16)
            rows, columns = moved.any(0).nonzero().unbind(1)
            assert rows.max() - rows.min() < 5 and columns.max() - columns.min() < 5
            assert rows.max() < 15 and columns.max() < 15
            corners.add(int(rows.min()))
        sizes = changed[changed != 0].abs()
        torch.testing.assert_close(sizes, torch.full_like(sizes, 2 * eps))
    assert corners >= set(range(11))


def test_linf_squares_have_one_colour_by_channel():
    clean, eps = torch.full((1, 3, 9, 9), 0.5), 0.1
    new = squares.recolour(clean, clean, 4, eps, generators(1))[0] - clean[0]
    for channel in new:
        assert len(channel[channel != 0]) == 16 and len(set(channel[channel != 0].tolist())) == 1
    torch.testing.assert_close(new.abs().amax((1, 2)), torch.full((3,), eps))


def test_l2_hills_have_length_one():
    for side in range(1, 12):
        hill = squares.double_pyramid(side)
        assert hill.shape == (side, side) and float(hill.norm()) == pytest.approx(1)
    hill = squares.double_pyramid(7)
    assert (hill[:3] > 0).all() and (hill[3:] < 0).all() and hill[1].argmax() == 3
    assert torch.allclose(hill, hill.flip(1))


def test_l2_moves_use_the_whole_ball():
    clean, eps = torch.full((4, 3, 16, 16), 0.5), 0.7
    own = generators(*range(4))
    images = squares.tiles(clean, eps, own)
    for _ in range(20):
        torch.testing.assert_close(distance(images, clean, "l2"), torch.full((4,), eps))
        assert not torch.equal(images[0], images[1])
        before, images = images, squares.move_mass(clean, images, 5, eps, own)
        changed = (images - before).abs().amax(1) > 1e-5
        assert (changed.flatten(1).sum(1) <= 2 * 25).all() and changed.any()


def test_l2_moves_fill_what_the_ball_leaves_unused():
    clean = torch.full((1, 3, 16, 16), 0.5)
    images = squares.tiles(clean, 0.2, generators(1))  # a fifth of the radius below
    moved = squares.move_mass(clean, images, 5, 1.0, generators(2))
    assert float(distance(moved, clean, "l2")) == pytest.approx(1.0, abs=1e-5)
    mass = (moved - clean).square().sum(dim=1)[0]  # (16, 16)
    assert float(mass.unfold(0, 5, 1).unfold(1, 5, 1).sum(dim=(2, 3)).max()) > 0.96


def test_l2_moves_empty_one_window_and_mix_a_hill_into_the_other():
    """Where the window is the whole image, its place leaves nothing open."""
    clean = torch.full((1, 3, 9, 9), 0.5)
    images = squares.tiles(clean, 0.2, generators(3))
    moved = squares.move_mass(clean, images, 9, 0.2, generators(4))[0] - 0.5
    old, hill = images[0] - 0.5, squares.double_pyramid(9)
    for channel, before in zip(moved, old, strict=True):
        mixed = [before / before.norm() + h for h in (hill, -hill, hill.t(), -hill.t())]
        expected = torch.stack([m / m.norm() * before.norm() for m in mixed])
        assert (channel - expected).abs().flatten(1).amax(1).min() < 1e-6
    even = torch.full((20, 3, 16, 16), 0.5 + 0.2 / 768**0.5)  # all pixels moved, at the edge
    moved = squares.move_mass(even * 0 + 0.5, even, 5, 0.2, generators(*range(20)))
    emptied = (moved == 0.5).all(1).flatten(1).sum(1)
    assert (emptied <= 25).all() and (emptied > 0).sum() > 15


# --- the search ----------------------------------------------------------------------------------


@both_norms
@settings(max_examples=20, deadline=None)
@given(
    eps=st.sampled_from([0.0, 0.5, 2.0, 20.0]),
    queries=st.integers(0, 25),
    restarts=st.integers(1, 3),
    n=st.integers(1, 7),
    classes=st.integers(2, 6),
)
def test_stays_in_the_ball_and_tells_the_truth(norm, eps, queries, restarts, n, classes):
    logits, clean, labels = problem(n, classes)
    spec = threat(norm, eps=eps * EPS[norm], restarts=restarts)
    result = few(queries)(logits, labels, spec).run(clean, range(n))
    victim.check_result(logits, clean, labels, spec, result)
    assert (result.loss_last >= result.loss_first).all() and not result.zero_grad.any()
    assert (result.queries == 0).equal(~is_right(logits, clean, labels))
    assert (result.queries[result.right] == restarts * (queries + 1)).all()
    assert (result.queries <= restarts * (queries + 1)).all()


@both_norms
@settings(max_examples=10, deadline=None)
@given(order=st.permutations(range(8)), cut=st.integers(1, 7), restarts=st.integers(1, 2))
def test_batch_size_and_order_do_not_matter(norm, order, cut, restarts):
    spec = threat(norm, eps=4 * EPS[norm], restarts=restarts)
    victim.check_batches(few(60, rescale=True), spec, order, cut)


def test_counts_what_the_model_saw_of_every_sample():
    """The model tells the samples apart by the clean image they are nearest to."""
    logits, clean, labels = problem(12)
    seen = torch.zeros(12, dtype=torch.long)

    def counted(x):
        owners = (x[:, None] - clean).abs().flatten(2).amax(2).argmin(1)  # the nearest clean image
        seen.index_add_(0, owners, torch.ones_like(owners))
        return logits(x)

    result = few(40)(counted, labels, threat(eps=8 / 255)).run(clean, range(12))
    assert torch.equal(result.queries + 1, seen)
    assert len(set(result.queries.tolist())) > 3 and 41 in result.queries


def test_more_queries_and_restarts_break_more():
    logits, clean, labels = problem(60)
    robust = []
    for queries, restarts in ((0, 1), (20, 1), (200, 1), (200, 2)):
        spec = threat(restarts=restarts)
        robust.append(few(queries, rescale=True)(logits, labels, spec).run(clean, range(60)).right)
    assert not (robust[3] & ~robust[2]).any()  # the first restart is the same
    left = [int(right.sum()) for right in robust]
    assert left[0] > left[1] > left[2] >= left[3] > 0


@both_norms
def test_breaks_a_model_whose_gradient_is_masked(norm):
    """Rounded logits have no gradient at all, which hardly hinders this attack."""
    logits, clean, labels = problem(40)
    rounded = lambda x: (100 * logits(x)).round() / 100  # noqa: E731
    spec = threat(norm, eps=4 * EPS[norm])
    masked, smooth = (
        few(200, rescale=True)(model, labels, spec).run(clean, range(40)).right
        for model in (rounded, logits)
    )
    assert is_right(rounded, clean, labels).sum() > 25 and smooth.sum() < 20
    assert masked.sum() <= smooth.sum() + 4


def test_memory_does_not_grow_with_queries():
    """As many tensor elements are alive in the 200th query as in the 10th."""
    logits, clean, labels = problem(3)
    alive = []

    def watched(x):
        everything = gc.get_objects() if len(alive) in (10, 200) else []
        alive.append(sum(o.numel() for o in everything if type(o) is torch.Tensor))
        return logits(x)

    few(200)(watched, labels, threat(eps=0.0)).run(clean, range(3))
    assert len(alive) == 202 and alive[10] == alive[200] > 0


@pytest.mark.parametrize("training", [True, False])
def test_nothing_leaks(training):
    victim.check_nothing_leaks(few(), threat(restarts=2), training)


@both_norms
def test_ambient_modes_do_not_matter(norm):
    victim.check_ambient_modes(few(), threat(norm))


def test_wrong_input_is_refused():
    victim.check_refusals(few(), threat())


# --- the original --------------------------------------------------------------------------------


def original(logits, norm, queries, **options):
    module = pytest.importorskip("pyautoattack.square")
    name = {"linf": "Linf", "l2": "L2"}[norm]
    return module.SquareAttack(logits, norm=name, n_queries=queries, device="cpu", **options)


@pytest.mark.parametrize("queries", [300, 5000, 10000])
@pytest.mark.parametrize("rescale", [True, False])
def test_schedule_of_the_original(queries, rescale):
    theirs = original(None, "linf", queries, resc_schedule=rescale)
    ours = Square(None, None, threat(), queries=queries, rescale=rescale)
    image = torch.zeros(1, 3, 96, 96)
    for query in range(0, queries, 7):
        side = max(round((theirs.p_selection(query) * 96 * 96) ** 0.5), 1)
        assert ours._side(query, image) == side


@pytest.mark.parametrize("side", [2, 3, 5, 8, 13, 44])
def test_hills_of_the_original(side):
    theirs = original(None, "l2", 1)
    theirs.norm, theirs.device = "L2", "cpu"
    state = torch.random.get_rng_state()
    hill = theirs.eta(side)
    torch.random.set_rng_state(state)
    ours = squares.double_pyramid(side)
    assert torch.allclose(hill, ours) or torch.allclose(hill, ours.t())


@both_norms
@pytest.mark.parametrize("factor", [1, 2])
def test_breaks_as_many_as_the_original(norm, factor):
    logits, clean, labels = problem(100)
    single, eps = lambda x: logits(x).float(), factor * EPS[norm]  # noqa: E731
    theirs, ours = [], []
    for seed in range(3):
        images = original(single, norm, 120, eps=eps, seed=seed).perturb(clean, labels)
        theirs.append(is_right(logits, images, labels).float().mean())
        seeds = range(1000 * seed, 1000 * seed + 100)
        result = few(120, rescale=True)(single, labels, threat(norm, eps=eps)).run(clean, seeds)
        ours.append(result.right.float().mean())
    assert 0.02 < sum(theirs) / 3 < 0.78  # 0.8 is the clean accuracy
    assert float(sum(ours) / 3) == pytest.approx(float(sum(theirs) / 3), abs=0.035)
