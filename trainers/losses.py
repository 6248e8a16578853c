"""Losses as pure functions of tensors: one value per sample, no reduction, no state.

An attack ascends them; training takes their mean. All compute in float32 whatever comes in,
so that half-precision logits neither overflow nor lose the small differences an attack lives on.
Unless stated otherwise, logits are (B, K), already multiplied by the logit scale, labels are (B,)
int64 in [0, K), and the result is (B,) float32.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """-log softmax(logits)_y, the loss of PGD (Madry et al., 2018, arXiv 1706.06083)."""
    return F.cross_entropy(logits.float(), labels, reduction="none")


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """max_{k != y} s_k - s_y: above 0 exactly where the sample is misclassified (K >= 2).

    Source: Carlini & Wagner, 2017 (arXiv 1608.04644), f_6 with its sign turned and no floor.
    """
    if logits.shape[1] < 2:
        raise ValueError("a margin needs at least two classes")
    logits = logits.float()
    own = logits.gather(1, labels[:, None])  # (B, 1)
    others = logits.scatter(1, labels[:, None], -torch.inf)  # (B, K)
    return others.amax(dim=1) - own[:, 0]


def dlr(logits: Tensor, labels: Tensor) -> Tensor:
    """-(s_y - max_{k != y} s_k) / (s_(1) - s_(3)), s_(i) the i-th largest logit.

    The margin over the logits' own spread: scaling the logits changes nothing, so that a large
    logit scale cannot make its gradient vanish as it does that of the cross-entropy. Above 0
    exactly where the sample is misclassified; K >= 3.

    Source: Croce & Hein, 2020 (arXiv 2003.01690), section 4; 1e-12 as in the authors' code.
    """
    if logits.shape[1] < 3:
        raise ValueError("the DLR loss needs at least 3 classes")
    top = logits.float().topk(3, dim=1).values  # (B, 3), descending
    return margin(logits, labels) / (top[:, 0] - top[:, 2] + 1e-12)


def dlr_targeted(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """-(s_y - s_t) / (s_(1) - (s_(3) + s_(4)) / 2), s_(i) the i-th largest logit.

    Above 0 exactly where the target's logit exceeds the label's; K >= 4.

    Source: Croce & Hein, 2020 (arXiv 2003.01690), targeted DLR; 1e-12 as in the authors' code.
    """
    if logits.shape[1] < 4:
        raise ValueError("the targeted DLR loss needs at least 4 classes")
    logits = logits.float()
    top = logits.topk(4, dim=1).values  # (B, 4), descending
    own, target = (logits.gather(1, k[:, None])[:, 0] for k in (labels, targets))
    return (target - own) / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2 + 1e-12)


def kl(target_logits: Tensor, logits: Tensor) -> Tensor:
    """KL( softmax(target_logits) || softmax(logits) ), the target first.

    Its gradient is exactly 0 where both arguments are equal: an attack on it needs a random start.
    Neither argument is detached here.

    Source: Zhang et al., 2019 (TRADES, arXiv 1901.08573), eq. 5.
    """
    log_target = F.log_softmax(target_logits.float(), dim=-1)
    log_prob = F.log_softmax(logits.float(), dim=-1)
    return F.kl_div(log_prob, log_target, reduction="none", log_target=True).sum(dim=-1)


DIRECTIONS = ("target_first", "adversarial_first")


def directed_kl(target: Tensor, adv: Tensor, target_first: bool) -> Tensor:
    """KL(target || adversarial), as the field computes it, or reversed."""
    return kl(target, adv) if target_first else kl(adv, target)


def embedding_kl(clean: Tensor, adv: Tensor) -> Tensor:
    """KL( softmax(f(x)) || softmax(f(x')) ) over the raw embedding coordinates, temperature 1.

    No label and no text enters: the attacker moves the image embedding away from where it was.
    ``clean`` and ``adv`` are un-normalised features (B, D) of the clean and the perturbed images.

    Source: AdvPT (arXiv 2311.11261), the objective of the adversarial embedding bank.
    """
    return kl(clean, adv)


def embedding_l2(clean: Tensor, adv: Tensor) -> Tensor:
    """||f(x') - f(x)||^2 of un-normalised features (B, D), summed over the coordinates.

    Source: FARE (arXiv 2402.12336), with the frozen tower's as ``clean``; also its attack.
    """
    return (adv.float() - clean.float()).square().sum(dim=-1)


# --- what the methods train on ------------------------------------------------------------------


def mean_ce(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of a batch: CoOp's loss on clean, adversarial training's on attacked."""
    return cross_entropy(logits, labels).mean()


def cosine(first: Tensor, second: Tensor) -> Tensor:
    """cos(vec a, vec b) of every sample (B, ...), all other dimensions flattened: (B,) float32."""
    return F.cosine_similarity(first.float().flatten(1), second.float().flatten(1), dim=1)


def block_consistency(clean: list[Tensor], adv: list[Tensor]) -> Tensor:
    """sum_l (1 - cos(vec F_l(x), vec F_l(x_adv))) over the image blocks l; neither side detached.

    Of one (B, N, d) per block on each side, returns (B,) float32 in [0, 2 L].

    Source: NAP-Tuning (arXiv 2506.12706), the consistency term of the authors' code.
    """
    gaps = (1 - cosine(a, b) for a, b in zip(clean, adv, strict=True))
    return sum(gaps, start=torch.zeros(()))


def nap(clean_ce: Tensor, adv_ce: Tensor, consistency: Tensor, lam: float, weight: float) -> Tensor:
    """(1 - lambda) CE(x) + lambda CE(x_adv) + lambda w C, C the mean of :func:`block_consistency`.

    All are scalars; in the authors' code ``lam`` is epoch / max_epoch and ``weight`` w is 1.

    Source: NAP-Tuning (arXiv 2506.12706), the training loss of the authors' code.
    """
    return (1 - lam) * clean_ce + lam * adv_ce + lam * weight * consistency


def capt_alpha(
    rule: str,
    frozen_logits: Tensor,
    tuned_logits: Tensor,
    labels: Tensor,
    *,
    constant: float = 0.5,
    progress: float = 0.0,
) -> Tensor:
    """The weight of the frozen model in CAPT's consistency, without gradient.

    Args:
        rule: ``conf`` a = p_frz(y) / (p_frz(y) + p_tuned(y) + 1e-8), per sample;
            ``acc`` the same ratio of the batch's accuracies;
            ``entropy`` a = H_tuned / (H_frz + H_tuned + 1e-8), per sample: lean on the surer model;
            ``const`` a = ``constant``;
            ``ramp`` a = 1 - ``progress``: from the frozen model to the tuned one.
        frozen_logits, tuned_logits: on the clean images.
        progress: finished share of the training, in [0, 1).

    Source: CAPT (arXiv 2405.11154) says that a adapts; the rules are ours.
    """
    frozen, tuned = (logits.detach().float() for logits in (frozen_logits, tuned_logits))
    if rule == "conf":
        frozen, tuned = (x.softmax(1).gather(1, labels[:, None])[:, 0] for x in (frozen, tuned))
        return frozen / (frozen + tuned + 1e-8)
    if rule == "acc":
        frozen, tuned = ((x.argmax(1) == labels).float().mean() for x in (frozen, tuned))
        return (frozen / (frozen + tuned + 1e-8)).expand(len(labels))
    if rule == "entropy":
        frozen, tuned = (-(x.softmax(1) * x.log_softmax(1)).sum(1) for x in (frozen, tuned))
        return tuned / (frozen + tuned + 1e-8)
    if rule in ("const", "ramp"):
        value = constant if rule == "const" else 1 - progress
        return torch.full((len(labels),), value, device=labels.device)
    raise ValueError(f"rule '{rule}' is unknown")


def capt_consistency(
    adv: Tensor,
    clean: Tensor,
    frozen: Tensor,
    alpha: Tensor,  # (B,) see :func:`capt_alpha`
    *,
    detach_target: bool = False,  # no gradient through the tuned model's answer to x
    target_first: bool = True,  # KL(target || adversarial), as the field computes it, or reversed
) -> tuple[Tensor, Tensor, Tensor]:
    """L_adv-cons = (1 - a) L_cons-train + a L_cons-frz, and its two terms.

    L_cons-train compares the tuned model's answers to x_adv and to x, L_cons-frz the tuned model's
    to x_adv with the frozen model's to x. Of logits (B, K), returns (B,) float32 each: the mix, the
    train term, the frozen term.

    Source: CAPT (arXiv 2405.11154), L_adv-cons.
    """
    train = directed_kl(clean.detach() if detach_target else clean, adv, target_first)
    frz = directed_kl(frozen.detach(), adv, target_first)
    return (1 - alpha) * train + alpha * frz, train, frz


def distillation(teacher: Tensor, student: Tensor, temperature: float = 1.0) -> Tensor:
    """T^2 KL( softmax(detached teacher / T) || softmax(student / T) ) (arXiv 1503.02531, 2)."""
    return temperature**2 * kl(teacher.detach() / temperature, student / temperature)


def apd_student(
    adv: Tensor, teacher: Tensor, labels: Tensor, *, beta: float, temperature: float = 1.0
) -> Tensor:
    """L_S = (1 - b) CE(S(x_adv), y) + b T^2 KL(T(x) || S(x_adv)), per sample; b in [0, 1].

    Of the student's logits ``adv`` on x_adv and the ``teacher``'s on x, detached here, both (B, K).

    Source: APD (arXiv 2411.15244): adversarial prompts, distilled from a clean teacher.
    """
    taught = distillation(teacher, adv, temperature)
    return (1 - beta) * cross_entropy(adv, labels) + beta * taught


def apd_teacher(teacher: Tensor, adv: Tensor, labels: Tensor, *, feedback: float) -> Tensor:
    """L_T = CE(T(x), y) + g KL(S(x_adv) || T(x)), the student detached, per sample.

    Of the ``teacher``'s logits on x and the student's ``adv`` on x_adv, both (B, K), with
    ``feedback`` g >= 0; 0 leaves the teacher alone.

    Source: APD (arXiv 2411.15244), online distillation.
    """
    loss = cross_entropy(teacher, labels)
    return loss + feedback * kl(adv.detach(), teacher) if feedback else loss


def fap_consistency(
    clean_logits: Tensor, adv_logits: Tensor, clean_features: Tensor, adv_features: Tensor
) -> Tensor:
    """KL(x || x_adv) * (cos(z, z_adv) + 1): consistent across modalities, different within one.

    Source: FAP (arXiv 2403.14774), the uni-modal-aware consistency of the training objective.
    """
    return kl(clean_logits, adv_logits) * (cosine(clean_features, adv_features) + 1)


def pmg_aft(
    adv: Tensor, clean: Tensor, frozen: Tensor, labels: Tensor, *, weights, target_first: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """CE(x_a) + w1 KL(p0(x_a) || p(x_a)) + w2 KL(p(x) || p(x_a)), and its two divergences.

    Of the tuned model's logits on x_a and x and frozen CLIP's on x_a, detached here. Without
    ``target_first`` both divergences are reversed.

    Source: PMG-AFT (arXiv 2401.04350), its L_general and L_clean.
    """
    guide, gap = (directed_kl(t, adv, target_first) for t in (frozen.detach(), clean))
    return cross_entropy(adv, labels) + weights[0] * guide + weights[1] * gap, guide, gap


def attention_maps(tokens: Tensor, texts: Tensor, size: int) -> Tensor:
    """A(x): how much each place of an image answers to a text, (B, size * size) in [0, 1].

    ``tokens`` (B, 1 + P, D) are [CLS] and the patches in the space of the texts, ``texts`` (B, D)
    one per image. Tokens are divided by their norm over the token axis, products scaled to [0, 1]
    per image and enlarged bilinearly.

    Source: TGA-ZSR (arXiv 2410.21802); norm, scaling and size as in the authors' code.
    """
    tokens = tokens.float() / tokens.float().norm(dim=1, keepdim=True)
    scores = (tokens[:, 1:] @ texts.float()[..., None])[..., 0]  # (B, P)
    low, high = scores.aminmax(dim=1, keepdim=True)
    side = math.isqrt(scores.shape[1])
    scores = ((scores - low) / (high - low).clamp(min=1e-12)).view(-1, 1, side, side)
    return F.interpolate(scores, size, mode="bilinear").flatten(1)


def tga_zsr(
    adv: Tensor, labels: Tensor, maps: tuple[Tensor, Tensor, Tensor], *, weights
) -> tuple[Tensor, Tensor, Tensor]:
    """CE(x_a) + w1 ||A(x_a) - A0(x)||_2 + w2 ||A(x) - A0(x)||_2, and the two distances.

    Of the tuned model's logits on x_a and the maps A(x_a), A(x) and frozen CLIP's A0(x), (B, N)
    each, see :func:`attention_maps`.

    Source: TGA-ZSR (arXiv 2410.21802), L_AR of eq. 6 and L_AMC of eq. 7.
    """
    refined, kept = (torch.linalg.vector_norm(own - maps[2], dim=1) for own in maps[:2])
    return cross_entropy(adv, labels) + weights[0] * refined + weights[1] * kept, refined, kept


def defeat(ce: Tensor, parts, texts: Tensor, handmade: Tensor, *, weights) -> Tensor:
    """CE + w1 |z - u| + w2 |t - t_hand| + w3 (x - x^)^2 + w4 ((sg ze - zq)^2 + (ze - sg zq)^2 / 4).

    Each is a mean over all values. ``parts`` are z, u, x, x^, ze and zq of the attacked images,
    ``ce`` their cross-entropy, ``texts`` and ``handmade`` t and t_hand (K, D).

    Source: DEFEAT (ICLR 2026), the authors' code; its last terms: arXiv 1711.00937, eq. 3.
    """
    image, local, patches, rebuilt, latent, codes = parts
    codebook = F.mse_loss(codes, latent.detach()) + 0.25 * F.mse_loss(latent, codes.detach())
    terms = (
        F.l1_loss(image, local),
        F.l1_loss(texts, handmade),
        F.mse_loss(rebuilt, patches),
        codebook,
    )
    return ce + sum(weight * term for weight, term in zip(weights, terms, strict=True))
