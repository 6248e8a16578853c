"""Trainers of a made fork; test_host_trainers.py copies this file into its ``trainers``."""

import torch
from dassl.engine import TRAINER_REGISTRY, TrainerX
from torch import nn
from torch.nn import functional as F
from torchvision.transforms import Compose, Resize, ToTensor


class Net(nn.Module):
    def __init__(self, classes, width):
        super().__init__()
        self.image = nn.Sequential(nn.Flatten(), nn.LazyLinear(width))
        self.text, self.ctx = nn.Linear(width, width), nn.Parameter(torch.randn(classes, width))

    def forward(self, image):
        return self.image(image) @ self.text(self.ctx).t()


@TRAINER_REGISTRY.register()
class Small(TrainerX):
    width, name = 8, "net"

    def build_model(self):
        self.model = Net(self.num_classes, self.width)
        self.model(torch.zeros(1, 3, *self.cfg.INPUT.SIZE))
        self.optim = torch.optim.SGD(self.model.parameters(), lr=0.01)
        self.register_model(self.name, self.model, self.optim, None)

    def forward_backward(self, batch):
        loss = F.cross_entropy(self.model(batch["img"]), batch["label"])
        self.model_backward_and_update(loss)
        return {"loss": loss.item()}

    def update_lr(self, names=None):
        pass


@TRAINER_REGISTRY.register()
class SmallTest(Small):
    """Its model does not answer images; its own test does."""

    def model_inference(self, image):
        raise NotImplementedError

    def load_model(self, directory, epoch=None):
        super().load_model(directory, 1)  # whatever is asked for

    def parse_batch_test(self, batch):
        assert len(batch["impath"]) == len(batch["img"])
        return batch["img"], batch["label"], batch["domain"]

    def test(self):
        self.set_model_mode("eval")
        self.evaluator.reset()
        for batch in self.test_loader:
            with torch.no_grad():
                image, label, _ = self.parse_batch_test(batch)
                self.evaluator.process(self.model(image * 2 - 1), label)
        assert len(self.test_loader.dataset)
        return next(iter(self.evaluator.evaluate().values()))


@TRAINER_REGISTRY.register()
class Wide(Small):
    width = 12


@TRAINER_REGISTRY.register()
class Other(Small):
    def load_model(self, directory, epoch=None):
        self._models["net"].load_state_dict({"ctx_of_another": torch.zeros(1)}, strict=False)


@TRAINER_REGISTRY.register()
class Needy(Small):
    def build_model(self):
        import no_such  # noqa: F401


@TRAINER_REGISTRY.register()
class Normalised(Small):
    def build_model(self):
        super().build_model()
        size = self.cfg.INPUT.SIZE
        transform = Compose([Resize(size), ToTensor(), lambda image: image * 4 - 2])
        self.test_loader.dataset.transform = transform


def answering(name, answer):
    """Register a trainer whose model_inference returns what ``answer`` makes of the logits."""
    own = {"model_inference": lambda self, image: answer(self.model(image)), "__module__": __name__}
    TRAINER_REGISTRY.register(type(name, (Small,), own))


answering("Probabilities", lambda logits: logits.softmax(1))
answering("Features", lambda logits: logits[:, :3])
answering("Several", lambda logits: (logits, logits * 2))
answering("Halves", lambda logits: logits.half())
answering("Mute", lambda logits: logits.no_such)
