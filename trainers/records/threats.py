"""Names of attacks, objectives, targets and norms, with their form in tables.

Plain data that the attacks, the records and the report share.
"""

PGD_FAMILY = {"pgd": "PGD", "fgsm": "FGSM", "mi": "MI-FGSM", "di": "DI-FGSM", "mdi": "MI-DI-FGSM"}
# attacks that choose step size, start and objective by themselves, each on the samples left
ADAPTIVE = {
    "autoattack": "AutoAttack",
    "apgd": "APGD-CE+DLR",
    "apgd-ce": "APGD-CE",
    "apgd-dlr": "APGD-DLR",
    "apgd-t": "APGD-T",
    "fab-t": "FAB-T",
    "square": "Square",
}
BLACK_BOX = {"rap": "RAP"}  # made on another model, the surrogate
ALGORITHMS = PGD_FAMILY | ADAPTIVE | BLACK_BOX
LIBRARY = "torchattacks:"  # the prefix of that library's classes

LABELLED = {"ce": "cross entropy", "margin": "margin"}  # objectives of logits and labels
# these compare with the clean output: features, or logits
FEATURED = {"embedding_kl": "embedding-KL", "embedding_l2": "embedding-L2"}
REFERENCED = {"kl": "KL"} | FEATURED
RAP_OBJECTIVES = {"logit": "MaxLogit", "ce": LABELLED["ce"]}
OBJECTIVES = LABELLED | REFERENCED | RAP_OBJECTIVES | {"dlr": "DLR"}  # dlr: in old records only

TARGETS = {
    "end_to_end": "end-to-end",
    "frozen_prompt": "frozen-prompt",
    "embedding": "transfer",
    "surrogate": "black-box",
}
NORMS = {"linf": "Linf", "l2": "L2"}
STARTS = ("uniform", "one_sided", "zero")
PRECISIONS = ("fp32", "bf16")
# what replaces the gradient of a codebook's nearest entry (DEFEAT)
BACKWARDS = ("straight_through", "unquantised", "soft", "blocked")
