"""PGD on a public trainer's own forward, written out: what ``advprompt test`` must find as well.

``released_run.py`` calls it in the process that trained, where nothing of ours touches the model.
"""

import torch
from torch.nn import functional as F
from torchvision.transforms import Normalize

STEPS = 10


def tcp(trainer, images):
    """Its forward detaches the image features."""
    model = trainer.model
    text = model.text_encoder(*model.prompt_learner(), model.weight, model.tokenized_prompts)
    image = model.image_encoder(images)
    return model.logit_scale.exp() * F.normalize(image, dim=1) @ F.normalize(text, dim=1).t()


def promptkd(trainer, images):
    """Its forward gives features of the student, to be compared with its teacher's texts."""
    features, scale = trainer.model(images)
    return scale * features @ trainer.model_teacher(images)[1].t()


FORWARDS = {
    "FAP": lambda trainer, images: trainer.model(trainer.preprocessing(images)),
    "TCP": tcp,
    "PromptKD": promptkd,
    "MMRL": lambda trainer, images: trainer.model(images)[2],
}


def attack(trainer, name: str) -> dict:
    """Return the largest radius eps/255 that leaves some image, and that attack on right images.

    The start is the clean image, alpha a quarter of eps.
    """
    forward = FORWARDS.get(name, lambda trainer, images: trainer.model_inference(images))
    data = trainer.test_loader.dataset
    stages = data.transform.transforms
    normal = next((s for s in stages if isinstance(s, Normalize)), torch.nn.Identity())
    data.transform.transforms = [s for s in stages if s is not normal]
    clean = torch.stack([data[i]["img"] for i in range(len(data))])
    labels = torch.tensor([data[i]["label"] for i in range(len(data))])
    trainer.set_model_mode("eval")

    def right(pixels, labels):
        with torch.no_grad():
            return forward(trainer, normal(pixels)).argmax(1) == labels

    attacked, eps = right(clean, labels), 16.0
    x, y = clean[attacked], labels[attacked]
    while eps > 1e-6:
        adversarial = x.clone()
        for _ in range(STEPS):
            adversarial.requires_grad_()
            loss = F.cross_entropy(forward(trainer, normal(adversarial)), y)
            (gradient,) = torch.autograd.grad(loss, adversarial)
            change = (adversarial + eps / 255 / 4 * gradient.sign() - x).clamp(
                -eps / 255, eps / 255
            )
            adversarial = (x + change.detach()).clamp(0, 1)
        if (left := right(adversarial, y)).any():
            break
        eps /= 2
    return {"eps": eps, "images": adversarial, "left": left}
