"""Where forks keep their CLIP."""


def build_model(state_dict: dict, design_details):
    raise NotImplementedError
