"""The prompt learner places context and names as CoOp does."""

import pytest
import torch
from toy import toy_clip

from advprompt.prompting import PromptLearner
from advprompt.utils.errors import UserError

NAMES = ["cat", "great_white shark", "abyssinian"]
WORDS = "a photo of a"


@pytest.fixture(scope="module")
def clip():
    return toy_clip()


def embed(clip, text, length):
    return clip.embed_tokens(clip.tokenize([text]))[0, :length]


def test_context_is_drawn_small_and_only_it_is_trained(clip):
    torch.manual_seed(3)
    learner = PromptLearner(NAMES, clip, n_ctx=16)
    assert learner.ctx.shape == (16, 64)
    assert 0.018 < learner.ctx.std() < 0.022 and abs(learner.ctx.mean()) < 0.005
    assert list(learner.state_dict()) == ["ctx"]
    assert [p for p in clip.parameters() if p.requires_grad] == []
    assert PromptLearner(NAMES, clip, n_ctx=16, csc=True).ctx.shape == (3, 16, 64)


@pytest.mark.parametrize("csc", [False, True])
def test_words_as_start_give_the_hand_made_prompt(clip, csc):
    learner = PromptLearner(NAMES, clip, n_ctx=9, ctx_init="a_photo of a", csc=csc)
    assert learner.n_ctx == 4
    embeddings, eot, _ = learner()
    for row, end, name in zip(embeddings, eot, NAMES, strict=True):
        text = f"{WORDS} {name.replace('_', ' ')}."
        assert torch.equal(row[: end + 1], embed(clip, text, end + 1))
    assert torch.equal(
        eot,
        clip.end_of_text(clip.tokenize([f"{WORDS} {name.replace('_', ' ')}." for name in NAMES])),
    )


@pytest.mark.parametrize(
    ("position", "template"),
    [("end", "x x x {}."), ("middle", "x {} x x."), ("front", "{} x x x.")],
)
def test_position_of_the_name(clip, position, template):
    learner = PromptLearner(NAMES, clip, n_ctx=3, position=position)
    with torch.no_grad():
        learner.ctx.copy_(embed(clip, "x", 2)[1:].expand(3, -1))
    embeddings, eot, _ = learner()
    for row, end, name in zip(embeddings, eot, NAMES, strict=True):
        text = template.format(name.replace("_", " "))
        assert torch.equal(row[: end + 1], embed(clip, text, end + 1))


def test_names_are_counted_as_in_coop_where_the_stop_changes_their_last_token(clip):
    """CoOp takes as many tokens for the name as it has without the stop."""
    encode = clip.tokenizer.encode
    ids, count = encode("what?!."), len(encode("what?!"))
    assert ids[:count] != encode("what?!") and len(ids) > count
    learner = PromptLearner(["what?!"], clip, n_ctx=2, position="front")
    row = [*clip.tokenizer.start, *ids[:count], 0, 0, *ids[count:], *clip.tokenizer.end]
    assert torch.equal(learner.fixed[0, : len(row)], clip.embed_tokens(torch.tensor([row]))[0])


@pytest.mark.parametrize(
    ("position", "csc", "shared"),
    [("end", False, 6), ("middle", False, 3), ("front", False, 1), ("end", True, 1)],
)
def test_shared_prefix(clip, position, csc, shared):
    learner = PromptLearner(NAMES, clip, n_ctx=5, csc=csc, position=position)
    embeddings, _, found = learner()
    assert found == shared
    same = (embeddings == embeddings[:1]).all(dim=-1).all(dim=0)
    assert same[:shared].all() and not same[shared]


def test_names_that_begin_alike_share_their_beginning(clip):
    learner = PromptLearner(["great dane", "great white shark"], clip, n_ctx=5)
    assert learner.shared == 7
    assert PromptLearner(["great dane", "great white shark"], clip, n_ctx=5, csc=True).shared == 1


def test_order_of_the_context_and_its_gradient(clip):
    learner = PromptLearner(NAMES, clip, n_ctx=3)
    embeddings = learner().embeddings
    assert torch.equal(embeddings[1, 1:4], learner.ctx)
    embeddings[:, 2].sum().backward()
    assert torch.equal(learner.ctx.grad.sum(dim=1), torch.tensor([0.0, 3 * 64, 0.0]))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"position": "ende"}, "'ende' is unknown. Did you mean end"),
        ({"n_ctx": 0}, "N_CTX is 0"),
        ({"n_ctx": 75}, "class 'great_white shark' with 75 context vectors takes 81 tokens"),
    ],
)
def test_mistakes_are_named(clip, arguments, sentence):
    with pytest.raises(UserError, match=sentence):
        PromptLearner(["great_white shark"], clip, **{"n_ctx": 4, **arguments})
